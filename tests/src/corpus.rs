//! The corpus of images by other products: its manifest, and a writable copy of one image with all the
//! files it needs.

use crate::tools::{find, workspace};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One row of the manifest.
#[derive(Debug, Clone)]
pub struct Row {
    /// Below the corpus folder; ends in `.xz` where packed.
    pub path: String,
    /// `raw`, `qcow2`, `vmdk`, …
    pub format: String,
    /// Subformat, or `… (extra file of …)`.
    pub subformat: String,
    /// Guest size in bytes, where it can be read.
    pub virtual_size: Option<u64>,
    /// SHA-256 of the unpacked file.
    pub sha256_file: String,
    /// SHA-256 of the whole guest content; empty for images that must be refused.
    pub sha256_content: String,
    /// What to expect.
    pub note: String,
    /// Terms of use.
    pub licence: String,
}

impl Row {
    /// Whether this is an extent of another row's image.
    #[must_use]
    pub fn is_part(&self) -> bool {
        self.subformat.contains("(extra file of") || self.subformat.ends_with(" extent")
    }

    /// Whether its content is that of another file in its folder with changes.
    #[must_use]
    pub fn has_parent(&self) -> bool {
        self.subformat.contains("with parent")
    }

    /// Whether it is there to be refused.
    #[must_use]
    pub fn is_hostile(&self) -> bool {
        self.path.starts_with("malicious/") || self.note.starts_with("NEGATIVE")
    }

    /// File name without the packing.
    #[must_use]
    pub fn name(&self) -> &str {
        let name = self.path.rsplit('/').next().unwrap_or(&self.path);
        name.strip_suffix(".xz").unwrap_or(name)
    }

    /// The format to name on a command line. Hostile third-party rows name none.
    #[must_use]
    pub fn driver(&self) -> Option<&str> {
        match self.format.as_str() {
            "malicious" => None,
            "vhd" => Some("vpc"),
            format => Some(format),
        }
    }
}

/// The corpus on disk.
#[derive(Debug, Clone)]
pub struct Corpus {
    /// Its folder.
    pub root: PathBuf,
    /// The manifest, in its order.
    pub rows: Vec<Row>,
}

impl Corpus {
    /// Reads the manifest of `$CORPUS`, or of `shared/corpus` beside the workspace.
    ///
    /// # Errors
    /// A sentence saying where it was looked for, or which line does not read.
    pub fn find() -> Result<Self, String> {
        let beside = |up: &Path| up.join("shared/corpus");
        let root = std::env::var_os("CORPUS")
            .map(PathBuf::from)
            .or_else(|| {
                let here = workspace();
                here.ancestors().map(beside).find(|dir| dir.join("MANIFEST.tsv").is_file())
            })
            .ok_or("no shared/corpus beside the workspace, and CORPUS is not set")?;
        Self::load(root)
    }

    /// Reads the manifest of a folder.
    ///
    /// # Errors
    /// A sentence saying which line does not read.
    pub fn load(root: PathBuf) -> Result<Self, String> {
        let manifest = root.join("MANIFEST.tsv");
        let text = std::fs::read_to_string(&manifest)
            .map_err(|e| format!("{}: {e}", manifest.display()))?;
        let rows = text.lines().skip(1).map(parse).collect::<Result<_, _>>()?;
        Ok(Self { root, rows })
    }

    /// The images of the formats done so far, each once (their extents come with them).
    pub fn images<'a>(&'a self, formats: &'a [&str]) -> impl Iterator<Item = &'a Row> {
        self.rows.iter().filter(move |row| formats.contains(&row.format.as_str()) && !row.is_part())
    }

    /// Copies an image into `dir` with everything beside it, unpacked; the path of the image comes back.
    ///
    /// # Errors
    /// A sentence naming the file.
    pub fn unpack(&self, row: &Row, dir: &Path) -> Result<PathBuf, String> {
        let folder = row.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let own_folder = self.rows.iter().any(|r| r.is_part() && in_folder(&r.path, folder));
        // A parent may be a row of its own: with a child of its folder comes everything.
        let mates = |r: &&Row| {
            let part = (own_folder && r.is_part()) || row.has_parent();
            r.path == row.path || (part && in_folder(&r.path, folder))
        };
        for mate in self.rows.iter().filter(mates) {
            place(&self.root.join(&mate.path), &dir.join(mate.name()))?;
        }
        Ok(dir.join(row.name()))
    }
}

fn in_folder(path: &str, folder: &str) -> bool {
    path.rsplit_once('/').map_or("", |(of, _)| of) == folder
}

/// Copies `from`, or unpacks it when it ends in `.xz`, to `to`.
///
/// # Errors
/// A sentence naming the file.
pub fn place(from: &Path, to: &Path) -> Result<(), String> {
    let named = |e: std::io::Error| format!("{}: {e}", from.display());
    if from.extension().is_none_or(|e| e != "xz") {
        // Not fs::copy: the corpus may be read-only, and its mode is not wanted.
        let mut source = std::fs::File::open(from).map_err(named)?;
        let mut target = std::fs::File::create(to).map_err(named)?;
        return std::io::copy(&mut source, &mut target).map(drop).map_err(named);
    }
    let xz = find("xz").ok_or("no xz here: apt-get install xz-utils")?;
    let target = std::fs::File::create(to).map_err(named)?;
    let status = Command::new(xz)
        .args(["--decompress", "--stdout"])
        .arg(from)
        .stdout(Stdio::from(target))
        .status()
        .map_err(named)?;
    if status.success() { Ok(()) } else { Err(format!("{}: xz failed", from.display())) }
}

fn parse(line: &str) -> Result<Row, String> {
    let fields: Vec<&str> = line.split('\t').collect();
    let [path, format, subformat, _, size, _, file, content, _, note, licence] = fields[..] else {
        return Err(format!("MANIFEST.tsv: {} fields, not 11: {line}", fields.len()));
    };
    Ok(Row {
        path: path.to_owned(),
        // One row says qcow2 and is its predecessor: the version field of the file is 1.
        format: if path.ends_with(".qcow") { "qcow" } else { format }.to_owned(),
        subformat: subformat.to_owned(),
        virtual_size: size.parse().ok(),
        sha256_file: file.to_owned(),
        sha256_content: content.to_owned(),
        note: note.to_owned(),
        licence: licence.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_row() {
        let row =
            parse("a/b.vmdk.xz\tvmdk\tflat (extra file of x)\tp\t\t9\tff\t\ts\tn\tCC0").unwrap();
        assert!(row.is_part() && row.virtual_size.is_none());
        assert_eq!((row.name(), row.driver()), ("b.vmdk", Some("vmdk")));
        assert!(parse("a\tb").is_err());
    }
}
