//! Names of CPUID bits, as QEMU and `/proc/cpuinfo` spell them.

/// A register that CPUID returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Register {
    /// EAX.
    Eax,
    /// EBX.
    Ebx,
    /// ECX.
    Ecx,
    /// EDX.
    Edx,
}

/// 32 bits of one leaf with their names; empty where there is none (or none for guests).
pub struct Word {
    /// Input EAX.
    pub leaf: u32,
    /// Input ECX.
    pub sub: u32,
    /// Which register of the answer.
    pub register: Register,
    /// Names by bit, several spellings separated by `|`.
    pub names: [&'static str; 32],
}

use Register::{Eax, Ebx, Ecx, Edx};

/// All words that models and flags talk about.
pub static WORDS: &[Word] = &[
    Word {
        leaf: 1,
        sub: 0,
        register: Edx,
        names: [
            "fpu", "vme", "de", "pse", "tsc", "msr", "pae", "mce", "cx8", "apic", "", "sep",
            "mtrr", "pge", "mca", "cmov", "pat", "pse36", "pn", "clflush", "", "ds|dts", "acpi",
            "mmx", "fxsr", "sse", "sse2", "ss", "ht", "tm", "ia64", "pbe",
        ],
    },
    Word {
        leaf: 1,
        sub: 0,
        register: Ecx,
        names: [
            "sse3|pni",
            "pclmulqdq|pclmuldq",
            "dtes64",
            "monitor",
            "ds-cpl",
            "vmx",
            "smx",
            "est",
            "tm2",
            "ssse3",
            "cid",
            "",
            "fma",
            "cx16",
            "xtpr",
            "pdcm",
            "",
            "pcid",
            "dca",
            "sse4.1|sse4-1",
            "sse4.2|sse4-2",
            "x2apic",
            "movbe",
            "popcnt",
            "tsc-deadline",
            "aes",
            "xsave",
            "",
            "avx",
            "f16c",
            "rdrand",
            "hypervisor",
        ],
    },
    Word {
        leaf: 7,
        sub: 0,
        register: Ebx,
        names: [
            "fsgsbase",
            "tsc-adjust",
            "sgx",
            "bmi1",
            "hle",
            "avx2",
            "",
            "smep",
            "bmi2",
            "erms",
            "invpcid",
            "rtm",
            "",
            "",
            "mpx",
            "",
            "avx512f",
            "avx512dq",
            "rdseed",
            "adx",
            "smap",
            "avx512ifma",
            "pcommit",
            "clflushopt",
            "clwb",
            "intel-pt",
            "avx512pf",
            "avx512er",
            "avx512cd",
            "sha-ni",
            "avx512bw",
            "avx512vl",
        ],
    },
    Word {
        leaf: 7,
        sub: 0,
        register: Ecx,
        names: [
            "",
            "avx512vbmi",
            "umip",
            "pku",
            "",
            "waitpkg",
            "avx512vbmi2",
            "",
            "gfni",
            "vaes",
            "vpclmulqdq",
            "avx512vnni",
            "avx512bitalg",
            "",
            "avx512-vpopcntdq",
            "",
            "la57",
            "",
            "",
            "",
            "",
            "",
            "rdpid",
            "",
            "bus-lock-detect",
            "cldemote",
            "",
            "movdiri",
            "movdir64b",
            "",
            "",
            "pks",
        ],
    },
    Word {
        leaf: 7,
        sub: 0,
        register: Edx,
        names: [
            "",
            "",
            "avx512-4vnniw",
            "avx512-4fmaps",
            "fsrm",
            "",
            "",
            "",
            "avx512-vp2intersect",
            "",
            "md-clear",
            "",
            "",
            "",
            "serialize",
            "",
            "tsx-ldtrk",
            "",
            "",
            "",
            "",
            "",
            "amx-bf16",
            "avx512-fp16",
            "amx-tile",
            "amx-int8",
            "spec-ctrl",
            "stibp",
            "flush-l1d",
            "arch-capabilities",
            "core-capability",
            "ssbd",
        ],
    },
    Word {
        leaf: 0xd,
        sub: 1,
        register: Eax,
        names: [
            "xsaveopt", "xsavec", "xgetbv1", "xsaves", "", "", "", "", "", "", "", "", "", "", "",
            "", "", "", "", "", "", "", "", "", "", "", "", "", "", "", "", "",
        ],
    },
    Word {
        leaf: 0x8000_0001,
        sub: 0,
        register: Edx,
        names: [
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "syscall",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "nx|xd",
            "",
            "mmxext",
            "",
            "",
            "fxsr-opt|ffxsr",
            "pdpe1gb",
            "rdtscp",
            "",
            "lm|i64",
            "3dnowext",
            "3dnow",
        ],
    },
    Word {
        leaf: 0x8000_0001,
        sub: 0,
        register: Ecx,
        names: [
            "lahf-lm",
            "cmp-legacy",
            "svm",
            "extapic",
            "cr8legacy",
            "abm|lzcnt",
            "sse4a",
            "misalignsse",
            "3dnowprefetch",
            "osvw",
            "ibs",
            "xop",
            "skinit",
            "wdt",
            "",
            "lwp",
            "fma4",
            "tce",
            "",
            "nodeid-msr",
            "",
            "tbm",
            "topoext",
            "perfctr-core",
            "perfctr-nb",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
        ],
    },
    Word {
        leaf: 0x8000_0008,
        sub: 0,
        register: Ebx,
        names: [
            "clzero",
            "",
            "xsaveerptr",
            "",
            "",
            "",
            "",
            "",
            "",
            "wbnoinvd",
            "",
            "",
            "ibpb",
            "",
            "ibrs",
            "amd-stibp",
            "",
            "stibp-always-on",
            "",
            "",
            "",
            "",
            "",
            "",
            "amd-ssbd",
            "virt-ssbd",
            "amd-no-ssb",
            "",
            "amd-psfd",
            "",
            "",
            "",
        ],
    },
];

/// The word (index into [`WORDS`]) and mask of a flag. `_` counts as `-` (and `.` as `-` for old scripts).
pub fn find(name: &str) -> Option<(usize, u32)> {
    let plain = |s: &str| s.replace(['_', '.'], "-");
    let name = plain(name);
    WORDS.iter().enumerate().find_map(|(w, word)| {
        let bit = word
            .names
            .iter()
            .position(|names| !names.is_empty() && names.split('|').any(|n| plain(n) == name))?;
        Some((w, 1 << bit))
    })
}

/// The first name of each bit of `mask` in a word.
pub fn names(word: usize, mask: u32) -> Vec<&'static str> {
    let Some(word) = WORDS.get(word) else { return Vec::new() };
    (0..32)
        .filter(|b| mask & (1 << b) != 0)
        .filter_map(|b: usize| word.names[b].split('|').next())
        .filter(|n| !n.is_empty())
        .collect()
}

/// All names there are, in alphabetical order (`-cpu help`).
pub fn all() -> Vec<&'static str> {
    let mut all: Vec<_> = WORDS
        .iter()
        .flat_map(|w| w.names)
        .filter_map(|n| n.split('|').next())
        .filter(|n| !n.is_empty())
        .collect();
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_where_it_stands() {
        for (w, word) in WORDS.iter().enumerate() {
            for (bit, names) in word.names.iter().enumerate() {
                for name in names.split('|').filter(|n| !n.is_empty()) {
                    assert_eq!(find(name), Some((w, 1 << bit)), "{name}");
                }
            }
        }
        assert_eq!(find("sse4_1"), find("sse4.1"));
        assert_eq!(find("lahf_lm"), find("lahf-lm"));
        assert_eq!(find("nonsense"), None);
        assert_eq!(names(0, 3), ["fpu", "vme"]);
    }
}
