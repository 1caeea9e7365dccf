//! From plain data to an opened image.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use imgcore::format::Access;
use imgcore::graph::open::{BackingChoice, OpenOptions, OpenRequest, Policy, Purpose, open};
use imgcore::graph::{Node, temporary};
use imgcore::opts::secret::Secrets;

use super::config::{Drive, Persistence, WriteAccess};
use super::disk::{Behaviour, Disk};
use super::image::{Certainty, ImageBackend, Reopen};
use super::remote::{self, Place};
use super::throttle::Throttle;
use crate::{Error, Result};

/// Limits by the name of their group.
pub type Groups = BTreeMap<String, Arc<Throttle>>;

/// An opened disk.
pub struct Opened {
    /// The disk.
    pub disk: Arc<Disk>,
    /// Lines for people.
    pub notes: Vec<String>,
    /// Where its bytes are.
    pub place: Place,
}

/// Opens a disk. Temporary overlays are made in `scratch`; limits are shared through `groups`.
///
/// # Errors
/// When the image cannot be opened, locked or understood.
pub fn disk(drive: &Drive, scratch: &Path, groups: &mut Groups) -> Result<Opened> {
    let mut notes = Vec::new();
    let temporary = drive.persistence == Persistence::Temporary;
    let secrets = secrets(drive)?;
    let drive = &Drive { image: remote::look_up(&drive.image)?, ..drive.clone() };
    let node = open_any(drive, temporary, &secrets)?;
    let place = remote::check(&node, drive.confined)?;
    let certainty = certainty(&drive.image, &node);
    if certainty == Certainty::GuessedRaw {
        notes.push(format!(
            "warning: Image format was not specified for '{}' and probing guessed raw.\n\
             Automatically detecting the format is dangerous for raw images, writes that would put \
             another format's header on it are refused.\n\
             Specify the 'raw' format explicitly to remove the restriction.",
            drive.image.name()
        ));
    }
    notes.extend(unrecorded(&node));
    let below = reopen(drive, &node, temporary, &secrets);
    let node = if temporary { temporary::overlay(scratch, node)? } else { node };
    let image = Arc::new(ImageBackend::new(node, certainty, temporary, below));
    let behaviour = Behaviour {
        name: drive.id.clone(),
        write_cache: drive.write_cache,
        write_error: drive.write_error,
        read_error: drive.read_error,
        throttle: drive.throttling.as_ref().map(|t| {
            let group =
                groups.entry(t.group.clone()).or_insert_with(|| Arc::new(Throttle::new(t.limits)));
            group.set(t.limits);
            group.clone()
        }),
    };
    Ok(Opened { disk: Arc::new(Disk::over_image(image, behaviour)), notes, place })
}

fn options(access: Access, secrets: &Secrets) -> OpenOptions {
    OpenOptions {
        access,
        secrets: secrets.clone(),
        purpose: Purpose::Guest,
        policy: Policy::everything(),
        ..OpenOptions::default()
    }
}

/// The passphrases, read from where they are.
fn secrets(drive: &Drive) -> Result<Secrets> {
    let mut all = Secrets::default();
    for def in &drive.secrets {
        let secret = def.clone().load(&all, imgcore::storage::secret::read);
        all.add(secret.map_err(Error::from)?).map_err(Error::from)?;
    }
    Ok(all)
}

fn open_any(drive: &Drive, temporary: bool, secrets: &Secrets) -> Result<Arc<Node>> {
    let read = |_| open(&drive.image, &options(Access::Read, secrets));
    if temporary || drive.access == WriteAccess::ReadOnly {
        return read(());
    }
    match open(&drive.image, &options(Access::Write, secrets)) {
        Err(e)
            if drive.access == WriteAccess::Auto
                && (e.kind() == crate::ErrorKind::ReadOnly
                    || matches!(
                        e.raw_errno(),
                        Some(libc::EACCES | libc::EROFS | libc::EPERM | libc::ETXTBSY)
                    )) =>
        {
            read(())
        }
        opened => opened,
    }
}

fn certainty(request: &OpenRequest, node: &Node) -> Certainty {
    if request.driver.is_none() && node.image().format_name() == "raw" {
        Certainty::GuessedRaw
    } else {
        Certainty::Known
    }
}

/// Images whose backing file was opened in a format that had to be guessed.
fn unrecorded(node: &Node) -> Vec<String> {
    let chain = node.chain();
    let pairs = chain.iter().zip(chain.iter().skip(1));
    pairs
        .filter_map(|(top, below)| {
            let backing = top.image().backing()?;
            // VMDK has only VMDK below it; the others record what they know.
            (backing.format.is_none() && top.image().format_name() != "vmdk").then(|| {
                let format = below.image().format_name();
                format!(
                    "warning: '{}' does not record the format of its backing file '{}', which was guessed: \
                     {format}. Record it: rimg rebase -u -b '{}' -F {format} '{}'",
                    top.name(),
                    backing.name,
                    backing.name,
                    top.name()
                )
            })
        })
        .collect()
}

/// How the file below the top, as the guest's disk will have it, can be opened for `commit`.
fn reopen(drive: &Drive, node: &Node, temporary: bool, secrets: &Secrets) -> Option<Reopen> {
    let options = options(Access::Read, secrets);
    if temporary {
        return Some(Reopen { request: drive.image.clone(), options });
    }
    let request = match &drive.image.backing {
        BackingChoice::Given(given) if !given.filename.is_empty() => (**given).clone(),
        BackingChoice::Given(given) => {
            // Options for the file that the image records.
            let below = node.backing()?;
            OpenRequest {
                filename: below.name().to_owned(),
                driver: Some(below.image().format_name().to_owned()),
                ..(**given).clone()
            }
        }
        BackingChoice::Recorded | BackingChoice::Nothing => {
            let below = node.backing()?;
            OpenRequest::parse(below.name(), Some(below.image().format_name())).ok()?
        }
    };
    Some(Reopen { request, options })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::config::OnError;
    use crate::block::disk::{ErrorAction, Outcome};
    use crate::block::stats::Op;
    use crate::block::{BlockBackend, Unmap};
    use std::sync::Mutex;

    fn drive(path: &Path, format: Option<&str>) -> Drive {
        Drive {
            id: "d0".into(),
            image: OpenRequest::file(path.to_string_lossy()).with_driver(format),
            ..Drive::default()
        }
    }

    fn backend(disk: &Disk) -> &Arc<ImageBackend> {
        disk.image().unwrap()
    }

    #[test]
    fn a_guessed_raw_image_keeps_foreign_headers_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, vec![0u8; 1 << 20]).unwrap();
        let o = disk(&drive(&path, None), dir.path(), &mut Groups::new()).unwrap();
        assert!(o.notes[0].contains("probing guessed raw"), "{:?}", o.notes);
        let image = backend(&o.disk);
        let mut header = vec![0u8; 512];
        header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        let e = image.write(0, &header).unwrap_err();
        assert_eq!(e.raw_errno(), Some(libc::EPERM), "{}", e.report());
        // Not in two steps either.
        image.write(0, b"QFI\xfb").unwrap();
        assert!(image.write(4, &[0, 0, 0, 2]).is_err());
        image.write(512, &header).unwrap();
        assert_eq!(std::fs::read(&path).unwrap()[512..1024], header);
        drop(o);
        std::fs::write(&path, vec![0u8; 1 << 20]).unwrap();
        let o = disk(&drive(&path, Some("raw")), dir.path(), &mut Groups::new()).unwrap();
        assert!(o.notes.is_empty());
        backend(&o.disk).write(0, &header).unwrap();
    }

    #[test]
    fn temporary_overlays_and_commit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
        let d = Drive { persistence: Persistence::Temporary, ..drive(&path, Some("raw")) };
        let one = disk(&d, dir.path(), &mut Groups::new()).unwrap();
        let two = disk(&d, dir.path(), &mut Groups::new()).unwrap();
        let image = backend(&one.disk);
        image.write(4096, &[1; 512]).unwrap();
        image.write_zeroes(65_536, 65_536, Unmap::Allowed).unwrap();
        image.flush().unwrap();
        assert!(std::fs::read(&path).unwrap().iter().all(|b| *b == 7));
        assert!(image.describe().unwrap().temporary);
        let e = image.commit().unwrap_err();
        assert!(e.report().contains("lock"), "another guest reads it: {}", e.report());
        drop(two);
        image.commit().unwrap();
        let now = std::fs::read(&path).unwrap();
        assert_eq!((now[4095], now[4096], now[4607], now[65_536]), (7, 1, 1, 0));
        image.write(0, &[9; 512]).unwrap();
        let mut b = [0; 2];
        image.read(511, &mut b).unwrap();
        assert_eq!(b, [9, 7]);
        assert_eq!(std::fs::read(&path).unwrap()[0], 7);
    }

    /// A guest's disk inside LUKS and inside qcow2, with a backing file that is encrypted, too.
    #[test]
    fn encrypted_images() {
        use imgcore::format::Unwatched;
        use imgcore::ops::Job;
        use imgcore::ops::create::{CreateImageOptions, plan};
        use imgcore::opts::secret;

        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("pw"), b"pass word").unwrap();
        let object = format!("secret,id=s0,file={}", dir.path().join("pw").display());
        let defs = vec![secret::parse(&object).unwrap()];
        let known = Drive { secrets: defs.clone(), ..Drive::default() };
        let all = secrets(&known).unwrap();
        let policy = Policy::everything();
        let job = Job { policy: &policy, watcher: &Unwatched, secrets: &all };
        let file = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
        let make = |name: &str, driver: &str, prefix: &str, backing: Option<&str>| {
            let mut options: Vec<(String, String)> = [("key-secret", "s0"), ("iter-time", "10")]
                .map(|(n, v)| (format!("{prefix}{n}"), v.to_owned()))
                .to_vec();
            if !prefix.is_empty() {
                options.push((format!("{prefix}format"), "luks".into()));
            }
            let wish = CreateImageOptions {
                filename: file(name),
                driver: driver.into(),
                size: Some(1 << 20),
                options,
                backing: backing.map(str::to_owned),
                backing_format: backing.map(|_| "qcow2".to_owned()),
                ..CreateImageOptions::default()
            };
            plan(wish, &job).unwrap().run(&job).unwrap();
        };
        make("a.luks", "luks", "", None);
        make("base.qcow2", "qcow2", "encrypt.", None);
        make("top.qcow2", "qcow2", "encrypt.", Some("base.qcow2"));
        let line = |args: &str| {
            let words: Vec<&str> = args.split(' ').collect();
            let parsed = crate::cmdline::parse(&words).unwrap();
            let crate::cmdline::Parsed::Run(run) = parsed else { panic!("{args}") };
            let mut devices = run.machine.devices.into_iter();
            devices
                .find_map(|d| match d.kind {
                    crate::machine::config::DeviceKind::Blk { drive, .. } => Some(*drive),
                    _ => None,
                })
                .unwrap()
        };
        let luks = format!(
            "-kernel k -object {object} -drive file={},format=luks,key-secret=s0,if=virtio",
            file("a.luks")
        );
        let chain = format!(
            "-kernel k -object {object} -blockdev driver=file,filename={},node-name=f \
             -blockdev driver=qcow2,file=f,node-name=d,encrypt.key-secret=s0,backing.encrypt.key-secret=s0 \
             -device virtio-blk-pci,drive=d",
            file("top.qcow2")
        );
        for args in [luks, chain] {
            let mut drive = line(&args);
            assert_eq!(drive.secrets, defs);
            for byte in [7u8, 9] {
                let opened = disk(&drive, dir.path(), &mut Groups::new()).unwrap();
                let image = backend(&opened.disk);
                image.write(5000, &[byte; 9000]).unwrap();
                image.flush().unwrap();
                let mut seen = [0; 9002];
                image.read(4999, &mut seen).unwrap();
                assert!(seen[1..9001].iter().all(|b| *b == byte), "{args}");
                image.close().unwrap();
            }
            drive.secrets.clear();
            let e = disk(&drive, dir.path(), &mut Groups::new()).err().unwrap();
            assert!(e.report().contains("No secret with id 's0'"), "{}", e.report());
        }
        let raw = std::fs::read(dir.path().join("a.luks")).unwrap();
        assert!(!raw.windows(64).any(|w| w == [9; 64]), "the file holds no plaintext");
    }

    #[test]
    fn one_writer_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, vec![7u8; 1 << 20]).unwrap();
        let d = drive(&path, Some("raw"));
        let _first = disk(&d, dir.path(), &mut Groups::new()).unwrap();
        let e = disk(&d, dir.path(), &mut Groups::new()).err().unwrap();
        assert!(e.report().contains("Failed to get \"write\" lock"), "{}", e.report());
    }

    #[test]
    fn errors_follow_the_policy() {
        struct Full;
        impl BlockBackend for Full {
            fn len(&self) -> u64 {
                1 << 20
            }
            fn read_only(&self) -> bool {
                false
            }
            fn read(&self, _: u64, _: &mut [u8]) -> Result<()> {
                Err(crate::Error::errno(libc::EIO))
            }
            fn write(&self, _: u64, _: &[u8]) -> Result<()> {
                Err(crate::Error::errno(libc::ENOSPC).context("told"))
            }
            fn flush(&self) -> Result<()> {
                Ok(())
            }
            fn discard(&self, _: u64, _: u64) -> Result<()> {
                Ok(())
            }
            fn write_zeroes(&self, _: u64, _: u64, _: Unmap) -> Result<()> {
                Ok(())
            }
            fn close(&self) -> Result<()> {
                Ok(())
            }
        }
        let ask = |write_error, read_error| {
            let b = Behaviour { write_error, read_error, ..Behaviour::default() };
            let disk = Disk::new(Arc::new(Full), b);
            let told: Arc<Mutex<Vec<(ErrorAction, bool)>>> = Arc::default();
            let inner = told.clone();
            disk.on_error(Box::new(move |e| inner.lock().unwrap().push((e.action, e.no_space))));
            let write = disk.run(Op::Write, 0, 512, |b| b.write(0, &[0; 512]));
            let read = disk.run(Op::Read, 0, 512, |b| b.read(0, &mut [0; 512]));
            assert_eq!((disk.stats().write.failed, disk.stats().read.failed), (1, 1));
            let told = told.lock().unwrap().clone();
            (write, read, told)
        };
        let (w, r, told) = ask(OnError::StopWhenFull, OnError::StopWhenFull);
        assert_eq!((w, r), (Outcome::Hold, Outcome::Failed));
        assert_eq!(told, [(ErrorAction::Stop, true), (ErrorAction::Report, false)]);
        let (w, r, _) = ask(OnError::Ignore, OnError::Stop);
        assert_eq!((w, r), (Outcome::Done, Outcome::Hold));
        let alone = Disk::new(
            Arc::new(Full),
            Behaviour { write_error: OnError::Stop, ..Behaviour::default() },
        );
        let w = alone.run(Op::Write, 0, 512, |b| b.write(0, &[0; 512]));
        assert_eq!(w, Outcome::Failed, "nobody could stop the machine");
    }
}
