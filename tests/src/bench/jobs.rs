//! What is measured: command lines, the files they need, and how to see that the result is right.

/// One job, given to both programs.
#[derive(Debug, Clone)]
pub struct Job {
    /// Row of the table.
    pub name: &'static str,
    /// The command line; the same for both programs.
    pub line: &'static str,
    /// Images it reads, made by [`super::input::derive`].
    pub inputs: &'static [&'static str],
    /// Fresh copies made before each run: from, to.
    pub fresh: &'static [(&'static str, &'static str)],
    /// Files removed before each run.
    pub outputs: &'static [&'static str],
    /// How the result is verified, once.
    pub verify: Verify,
    /// The plain copy that bounds the job from below: which file.
    pub limit: Option<&'static str>,
    /// Runs that make one measurement: a start of a few milliseconds alone drowns in noise.
    pub repeat: u32,
    /// At most this many rounds.
    pub rounds: usize,
}

/// How a result is verified.
#[derive(Debug, Clone, Copy)]
pub enum Verify {
    /// The reference compares two images (name, format) and checks the second.
    Same((&'static str, &'static str), (&'static str, &'static str)),
    /// Both programs print the same JSON.
    Output,
    /// The reference checks an image.
    Check(&'static str),
    /// Nothing but the exit code.
    Exit,
}

const PLAIN: Job = Job {
    name: "",
    line: "",
    inputs: &[],
    fresh: &[],
    outputs: &[],
    verify: Verify::Exit,
    limit: None,
    repeat: 1,
    rounds: usize::MAX,
};

const RAW: (&str, &str) = ("m.raw", "raw");
const SMALL_RAW: (&str, &str) = ("t.raw", "raw");

/// The table of jobs.
pub const JOBS: &[Job] = &[
    Job {
        name: "raw -> qcow2",
        line: "convert -f raw -O qcow2 m.raw out.qcow2",
        inputs: &["m.raw"],
        outputs: &["out.qcow2"],
        verify: Verify::Same(RAW, ("out.qcow2", "qcow2")),
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "qcow2 -> raw",
        line: "convert -f qcow2 -O raw m.qcow2 out.raw",
        inputs: &["m.qcow2"],
        outputs: &["out.raw"],
        verify: Verify::Same(RAW, ("out.raw", "raw")),
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "qcow2 -> qcow2",
        line: "convert -f qcow2 -O qcow2 m.qcow2 out.qcow2",
        inputs: &["m.raw", "m.qcow2"],
        outputs: &["out.qcow2"],
        verify: Verify::Same(RAW, ("out.qcow2", "qcow2")),
        limit: Some("m.qcow2"),
        ..PLAIN
    },
    Job {
        name: "vmdk -> raw",
        line: "convert -f vmdk -O raw m.vmdk out.raw",
        inputs: &["m.vmdk"],
        outputs: &["out.raw"],
        verify: Verify::Same(RAW, ("out.raw", "raw")),
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "vmdk -> qcow2",
        line: "convert -f vmdk -O qcow2 m.vmdk out.qcow2",
        inputs: &["m.vmdk"],
        outputs: &["out.qcow2"],
        verify: Verify::Same(RAW, ("out.qcow2", "qcow2")),
        limit: Some("m.vmdk"),
        ..PLAIN
    },
    Job {
        name: "raw -> vmdk",
        line: "convert -f raw -O vmdk m.raw out.vmdk",
        inputs: &["m.raw"],
        outputs: &["out.vmdk"],
        verify: Verify::Same(RAW, ("out.vmdk", "vmdk")),
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "vdi -> raw",
        line: "convert -f vdi -O raw m.vdi out.raw",
        inputs: &["m.vdi"],
        outputs: &["out.raw"],
        verify: Verify::Same(RAW, ("out.raw", "raw")),
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "vdi -> qcow2",
        line: "convert -f vdi -O qcow2 m.vdi out.qcow2",
        inputs: &["m.vdi"],
        outputs: &["out.qcow2"],
        verify: Verify::Same(RAW, ("out.qcow2", "qcow2")),
        limit: Some("m.vdi"),
        ..PLAIN
    },
    Job {
        name: "raw -> vdi",
        line: "convert -f raw -O vdi m.raw out.vdi",
        inputs: &["m.raw"],
        outputs: &["out.vdi"],
        verify: Verify::Same(RAW, ("out.vdi", "vdi")),
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "vpc -> raw",
        line: "convert -f vpc -O raw m.vhd out.raw",
        inputs: &["m.vhd"],
        outputs: &["out.raw"],
        verify: Verify::Same(RAW, ("out.raw", "raw")),
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "vpc -> qcow2",
        line: "convert -f vpc -O qcow2 m.vhd out.qcow2",
        inputs: &["m.vhd"],
        outputs: &["out.qcow2"],
        verify: Verify::Same(RAW, ("out.qcow2", "qcow2")),
        limit: Some("m.vhd"),
        ..PLAIN
    },
    Job {
        name: "raw -> vpc",
        line: "convert -f raw -O vpc -o force_size=on m.raw out.vhd",
        inputs: &["m.raw"],
        outputs: &["out.vhd"],
        verify: Verify::Same(RAW, ("out.vhd", "vpc")),
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "vhdx -> raw",
        line: "convert -f vhdx -O raw m.vhdx out.raw",
        inputs: &["m.vhdx"],
        outputs: &["out.raw"],
        verify: Verify::Same(RAW, ("out.raw", "raw")),
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "vhdx -> qcow2",
        line: "convert -f vhdx -O qcow2 m.vhdx out.qcow2",
        inputs: &["m.vhdx"],
        outputs: &["out.qcow2"],
        verify: Verify::Same(RAW, ("out.qcow2", "qcow2")),
        limit: Some("m.vhdx"),
        ..PLAIN
    },
    Job {
        name: "raw -> vhdx",
        line: "convert -f raw -O vhdx m.raw out.vhdx",
        inputs: &["m.raw"],
        outputs: &["out.vhdx"],
        verify: Verify::Same(RAW, ("out.vhdx", "vhdx")),
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "qcow -> raw",
        line: "convert -f qcow -O raw m.qcow out.raw",
        inputs: &["m.qcow"],
        outputs: &["out.raw"],
        verify: Verify::Same(RAW, ("out.raw", "raw")),
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "qcow -> qcow2",
        line: "convert -f qcow -O qcow2 m.qcow out.qcow2",
        inputs: &["m.qcow"],
        outputs: &["out.qcow2"],
        verify: Verify::Same(RAW, ("out.qcow2", "qcow2")),
        limit: Some("m.qcow"),
        ..PLAIN
    },
    Job {
        name: "raw -> qcow",
        line: "convert -f raw -O qcow m.raw out.qcow",
        inputs: &["m.raw"],
        outputs: &["out.qcow"],
        verify: Verify::Same(RAW, ("out.qcow", "qcow")),
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "qed -> raw",
        line: "convert -f qed -O raw m.qed out.raw",
        inputs: &["m.qed"],
        outputs: &["out.raw"],
        verify: Verify::Same(RAW, ("out.raw", "raw")),
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "qed -> qcow2",
        line: "convert -f qed -O qcow2 m.qed out.qcow2",
        inputs: &["m.qed"],
        outputs: &["out.qcow2"],
        verify: Verify::Same(RAW, ("out.qcow2", "qcow2")),
        limit: Some("m.qed"),
        ..PLAIN
    },
    Job {
        name: "raw -> qed",
        line: "convert -f raw -O qed m.raw out.qed",
        inputs: &["m.raw"],
        outputs: &["out.qed"],
        verify: Verify::Same(RAW, ("out.qed", "qed")),
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "parallels -> raw",
        line: "convert -f parallels -O raw m.hdd out.raw",
        inputs: &["m.hdd"],
        outputs: &["out.raw"],
        verify: Verify::Same(RAW, ("out.raw", "raw")),
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "parallels -> qcow2",
        line: "convert -f parallels -O qcow2 m.hdd out.qcow2",
        inputs: &["m.hdd"],
        outputs: &["out.qcow2"],
        verify: Verify::Same(RAW, ("out.qcow2", "qcow2")),
        limit: Some("m.hdd"),
        ..PLAIN
    },
    Job {
        name: "raw -> parallels",
        line: "convert -f raw -O parallels m.raw out.hdd",
        inputs: &["m.raw"],
        outputs: &["out.hdd"],
        verify: Verify::Same(RAW, ("out.hdd", "parallels")),
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "raw -> raw",
        line: "convert -f raw -O raw m.raw out.raw",
        inputs: &["m.raw"],
        outputs: &["out.raw"],
        verify: Verify::Same(RAW, ("out.raw", "raw")),
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "raw -> qcow2 -c (zlib)",
        line: "convert -c -f raw -O qcow2 t.raw out.qcow2",
        inputs: &["t.raw"],
        outputs: &["out.qcow2"],
        verify: Verify::Same(SMALL_RAW, ("out.qcow2", "qcow2")),
        ..PLAIN
    },
    Job {
        name: "raw -> qcow2 -c (zstd)",
        line: "convert -c -f raw -O qcow2 -o compression_type=zstd t.raw out.qcow2",
        inputs: &["t.raw"],
        outputs: &["out.qcow2"],
        verify: Verify::Same(SMALL_RAW, ("out.qcow2", "qcow2")),
        ..PLAIN
    },
    Job {
        name: "raw -> streamOptimized",
        line: "convert -f raw -O vmdk -o subformat=streamOptimized t.raw out.vmdk",
        inputs: &["t.raw"],
        outputs: &["out.vmdk"],
        verify: Verify::Same(SMALL_RAW, ("out.vmdk", "vmdk")),
        ..PLAIN
    },
    Job {
        name: "streamOptimized -> raw",
        line: "convert -f vmdk -O raw t-stream.vmdk out.raw",
        inputs: &["t-stream.vmdk"],
        outputs: &["out.raw"],
        verify: Verify::Same(SMALL_RAW, ("out.raw", "raw")),
        ..PLAIN
    },
    Job {
        name: "qcow2 -c (zlib) -> raw",
        line: "convert -f qcow2 -O raw t-zlib.qcow2 out.raw",
        inputs: &["t-zlib.qcow2"],
        outputs: &["out.raw"],
        verify: Verify::Same(SMALL_RAW, ("out.raw", "raw")),
        ..PLAIN
    },
    Job {
        name: "qcow2 -c (zstd) -> raw",
        line: "convert -f qcow2 -O raw t-zstd.qcow2 out.raw",
        inputs: &["t-zstd.qcow2"],
        outputs: &["out.raw"],
        verify: Verify::Same(SMALL_RAW, ("out.raw", "raw")),
        ..PLAIN
    },
    Job {
        name: "compare raw raw",
        line: "compare -f raw -F raw m.raw m2.raw",
        inputs: &["m.raw", "m2.raw"],
        ..PLAIN
    },
    Job {
        name: "compare raw qcow2",
        line: "compare -f raw -F qcow2 m.raw m.qcow2",
        inputs: &["m.raw", "m.qcow2"],
        ..PLAIN
    },
    Job {
        name: "info, small",
        line: "info --output=json m.qcow2",
        inputs: &["m.qcow2"],
        verify: Verify::Output,
        repeat: 20,
        ..PLAIN
    },
    Job {
        name: "check, small",
        line: "check --output=json m.qcow2",
        inputs: &["m.qcow2"],
        verify: Verify::Output,
        repeat: 20,
        ..PLAIN
    },
    Job {
        name: "map, small",
        line: "map --output=json m.qcow2",
        inputs: &["m.qcow2"],
        verify: Verify::Output,
        repeat: 20,
        ..PLAIN
    },
    Job {
        name: "luks -> raw",
        line: "convert --object secret,id=s,data=benchmark --image-opts -O raw driver=luks,file.filename=m.luks,key-secret=s out.raw",
        inputs: &["m.luks"],
        outputs: &["out.raw"],
        verify: Verify::Same(RAW, ("out.raw", "raw")),
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "raw -> luks",
        line: "convert --object secret,id=s,data=benchmark -f raw -O luks -o key-secret=s,iter-time=10 m.raw out.luks",
        inputs: &["m.raw"],
        outputs: &["out.luks"],
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "qcow2 with luks -> raw",
        line: "convert --object secret,id=s,data=benchmark --image-opts -O raw driver=qcow2,file.filename=m-luks.qcow2,encrypt.key-secret=s out.raw",
        inputs: &["m-luks.qcow2"],
        outputs: &["out.raw"],
        verify: Verify::Same(RAW, ("out.raw", "raw")),
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "raw -> qcow2 with luks",
        line: "convert --object secret,id=s,data=benchmark -f raw -O qcow2 -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10 m.raw out.qcow2",
        inputs: &["m.raw"],
        outputs: &["out.qcow2"],
        limit: Some("m.raw"),
        ..PLAIN
    },
    Job {
        name: "measure, small",
        line: "measure --output=json -O qcow2 m.qcow2",
        inputs: &["m.qcow2"],
        verify: Verify::Output,
        repeat: 20,
        ..PLAIN
    },
    Job {
        name: "check, 1 TiB allocated",
        line: "check --output=json huge.qcow2",
        inputs: &["huge.qcow2"],
        verify: Verify::Output,
        ..PLAIN
    },
    Job {
        name: "map, 1 TiB allocated",
        line: "map --output=json huge.qcow2",
        inputs: &["huge.qcow2"],
        verify: Verify::Output,
        ..PLAIN
    },
    Job {
        name: "measure, 1 TiB allocated",
        line: "measure --output=json -O qcow2 huge.qcow2",
        inputs: &["huge.qcow2"],
        verify: Verify::Output,
        ..PLAIN
    },
    Job {
        name: "snapshot -c, 1 TiB allocated",
        line: "snapshot -c two work.qcow2",
        inputs: &["huge.qcow2"],
        fresh: &[("huge.qcow2", "work.qcow2")],
        outputs: &["work.qcow2"],
        verify: Verify::Check("work.qcow2"),
        rounds: 3,
        ..PLAIN
    },
    Job {
        name: "snapshot -d, 1 TiB allocated",
        line: "snapshot -d one work.qcow2",
        inputs: &["huge-snap.qcow2"],
        fresh: &[("huge-snap.qcow2", "work.qcow2")],
        outputs: &["work.qcow2"],
        verify: Verify::Check("work.qcow2"),
        rounds: 3,
        ..PLAIN
    },
    Job {
        name: "create 100 GiB preallocation=metadata",
        line: "create -q -f qcow2 -o preallocation=metadata out.qcow2 100G",
        outputs: &["out.qcow2"],
        verify: Verify::Check("out.qcow2"),
        ..PLAIN
    },
    Job {
        name: "commit",
        line: "commit -q -f qcow2 work-top.qcow2",
        inputs: &["top.qcow2"],
        fresh: &[("top.qcow2", "work-top.qcow2"), ("under.qcow2", "work-under.qcow2")],
        outputs: &["work-top.qcow2", "work-under.qcow2"],
        verify: Verify::Same(SMALL_RAW, ("work-under.qcow2", "qcow2")),
        ..PLAIN
    },
    Job {
        name: "rebase, safe",
        line: "rebase -f qcow2 -b empty.raw -F raw work.qcow2",
        inputs: &["overlay.qcow2"],
        fresh: &[("overlay.qcow2", "work.qcow2")],
        outputs: &["work.qcow2"],
        verify: Verify::Same(SMALL_RAW, ("work.qcow2", "qcow2")),
        ..PLAIN
    },
    Job {
        name: "resize to 2 TiB",
        line: "resize -q -f qcow2 work.qcow2 2T",
        inputs: &["huge.qcow2"],
        fresh: &[("huge.qcow2", "work.qcow2")],
        outputs: &["work.qcow2"],
        verify: Verify::Check("work.qcow2"),
        rounds: 5,
        ..PLAIN
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_lines_name_their_files() {
        for (index, job) in JOBS.iter().enumerate() {
            assert!(JOBS[..index].iter().all(|other| other.name != job.name), "{}", job.name);
            assert!(job.repeat == 1 || job.outputs.is_empty(), "{} repeats writes", job.name);
        }
    }
}
