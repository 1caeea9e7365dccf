//! A folder shown as a FAT disk: `fat:DIR`, `fat:32:DIR`, `fat:floppy:DIR`, and the options of `driver=vvfat`.

use serde_json::{Map, Value};

use super::OptError;
use super::filter::{Shown, given};
use super::tree::{Flat, Scalar};
use super::value;

/// Width of the table's entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FatType {
    /// 12 bits.
    Fat12,
    /// 16 bits.
    Fat16,
    /// 32 bits, of which 28 are used.
    Fat32,
}

/// What kind of disk it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Medium {
    /// A hard disk with one partition.
    #[default]
    Disk,
    /// A floppy disk without partitions.
    Floppy,
}

/// A folder, and the disk it is shown as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FatTarget {
    /// The folder.
    pub dir: String,
    /// Chosen by the size of what is in the folder where not given.
    pub fat_type: Option<FatType>,
    /// Disk or floppy disk.
    pub medium: Medium,
    /// Volume label, at most 11 bytes.
    pub label: String,
    /// Options as they were given, for the name.
    shown: Vec<(String, Scalar)>,
}

impl FatTarget {
    /// From `fat:[floppy:][12:|16:|32:]DIR`.
    pub fn parse(name: &str) -> Result<Self, OptError> {
        let mut rest = name
            .strip_prefix("fat:")
            .ok_or_else(|| OptError::new("File name string must start with 'fat:'"))?;
        let (mut kind, mut floppy, mut rw) = ("0", false, false);
        while let Some((word, tail)) = rest.split_once(':') {
            match word {
                "rw" => rw = true,
                "floppy" => floppy = true,
                "12" | "16" | "32" => kind = word,
                _ => break,
            }
            rest = tail;
        }
        let options = [
            ("fat-type", Scalar::Number(kind.to_owned())),
            ("dir", Scalar::Text(rest.to_owned())),
            ("floppy", Scalar::Bool(floppy)),
            ("rw", Scalar::Bool(rw)),
        ];
        FatTarget::from_options(&options.map(|(key, value)| (key.to_owned(), value)))
    }

    /// From the options of `driver=vvfat`.
    pub fn from_options(options: &[(String, Scalar)]) -> Result<Self, OptError> {
        let mut flat = Flat::default();
        for (key, value) in options {
            flat.set(key, value.clone());
        }
        let mut flag = |name: &str| -> Result<bool, OptError> {
            flat.take_text(name).map_or(Ok(false), |t| value::boolean(name, &t))
        };
        let (floppy, rw) = (flag("floppy")?, flag("rw")?);
        let dir = flat.take_text("dir").filter(|d| !d.is_empty());
        let dir = dir.ok_or_else(|| OptError::new("vvfat block driver requires a 'dir' option"))?;
        let fat_type = match flat.take_text("fat-type").as_deref() {
            None | Some("0") => None,
            Some("12") => Some(FatType::Fat12),
            Some("16") => Some(FatType::Fat16),
            Some("32") => Some(FatType::Fat32),
            Some(_) => return Err(OptError::new("Valid FAT types are only 12, 16 and 32")),
        };
        let label = flat.take_text("label").unwrap_or_else(|| "QEMU VVFAT".to_owned());
        if label.len() > 11 {
            return Err(OptError::new("vvfat label cannot be longer than 11 bytes"));
        }
        let good =
            |c: char| c == ' ' || (c.is_ascii_graphic() && !"\"*+,./:;<=>?[\\]|".contains(c));
        if !label.chars().all(good) {
            return Err(OptError::new("vvfat label has a character that FAT does not allow"));
        }
        if let Some((key, _)) = flat.iter().next() {
            return Err(OptError::new(format!(
                "Block protocol 'vvfat' doesn't support the option '{key}'"
            )));
        }
        if rw {
            return Err(OptError::new("a folder cannot be written through a FAT")
                .hint("what a guest leaves in its tables between two writes is no folder; without 'rw' it is read"));
        }
        let medium = if floppy { Medium::Floppy } else { Medium::Disk };
        if floppy && matches!(fat_type, Some(FatType::Fat16 | FatType::Fat32)) {
            return Err(OptError::new("a floppy disk has a FAT of 12 bits"));
        }
        Ok(FatTarget {
            dir,
            fat_type,
            medium,
            label: label.to_ascii_uppercase(),
            shown: options.to_vec(),
        })
    }

    /// How it is shown.
    pub fn shown(&self) -> Shown {
        let mut tree: Map<String, Value> =
            self.shown.iter().map(|(k, v)| (k.clone(), given(v))).collect();
        tree.insert("driver".to_owned(), "vvfat".into());
        Shown::Tree(tree.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let t = FatTarget::parse("fat:floppy:12:a:b").unwrap();
        assert_eq!(
            (t.dir.as_str(), t.medium, t.fat_type),
            ("a:b", Medium::Floppy, Some(FatType::Fat12))
        );
        assert_eq!(
            FatTarget::parse("fat:d").unwrap().shown().name(),
            "json:{\"dir\":\"d\",\"driver\":\"vvfat\",\"fat-type\":0,\"floppy\":false,\"rw\":false}"
        );
        let message = |name: &str| FatTarget::parse(name).unwrap_err().message;
        assert!(message("fat:rw:d").contains("cannot be written"));
        assert!(message("fat:floppy:32:d").contains("12 bits"));
        assert!(message("fat:").contains("requires a 'dir'"));
    }

    #[test]
    fn options() {
        let of = |text: &str| {
            let all: Vec<_> = text
                .split(',')
                .filter_map(|p| p.split_once('='))
                .map(|(k, v)| (k.to_owned(), Scalar::Text(v.to_owned())))
                .collect();
            FatTarget::from_options(&all)
        };
        assert_eq!(of("dir=d,label=abc,fat-type=16").unwrap().label, "ABC");
        assert_eq!(
            of("label=x").unwrap_err().message,
            "vvfat block driver requires a 'dir' option"
        );
        assert!(of("dir=d,fat-type=13").unwrap_err().message.contains("only 12, 16 and 32"));
        assert!(of("dir=d,label=aaaaaaaaaaaa").unwrap_err().message.contains("11 bytes"));
        assert!(of("dir=d,label=a/b").is_err() && of("dir=d,foo=1").is_err());
    }
}
