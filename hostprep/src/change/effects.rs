//! Where changes happen: this machine ([`System`]) or a fake tree ([`TreeEffects`]).
//!
//! Files are written the same way in both (`files`); what differs is what only a kernel can do. `checkpoint` is
//! called between any two system calls that matter, so that tests can end the process there.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::net::NetBackend;

use super::boot;
use super::journal::Lock;
use super::kernel;
use super::program::Programs;

/// What only a kernel, or a program, can do.
pub trait Effects {
    /// The folder below which paths are meant.
    fn root(&self) -> &Path;
    /// Whatever is started from now on holds the lock of changes too; None when the change is over.
    fn hold(&mut self, _lock: Option<Lock>) {}
    /// Called between any two steps.
    fn checkpoint(&mut self, _what: &str) {}
    /// Writes a value to a kernel file: one write call, no rename, as these are not ordinary files.
    fn write_value(&mut self, place: &Path, value: &str) -> std::io::Result<()> {
        let mut file = std::fs::OpenOptions::new().write(true).open(place)?;
        std::io::Write::write_all(&mut file, format!("{value}\n").as_bytes())
    }
    /// Makes a control group.
    fn make_group(&mut self, place: &Path) -> std::io::Result<()> {
        std::fs::create_dir(place)
    }
    /// Removes a control group; the kernel takes its files away with it.
    fn remove_group(&mut self, place: &Path) -> std::io::Result<()> {
        std::fs::remove_dir(place)
    }
    /// Loads a module and what it needs.
    fn load_module(&mut self, name: &str, parameters: &[(String, String)]) -> Result<()>;
    /// Unloads a module.
    fn unload_module(&mut self, name: &str) -> Result<()>;
    /// Mounts.
    fn mount(&mut self, source: &str, point: &str, kind: &str, options: &str) -> Result<()>;
    /// Unmounts.
    fn unmount(&mut self, point: &str) -> Result<()>;
    /// Uses a swap area.
    fn swap_on(&mut self, path: &str) -> Result<()>;
    /// Stops using it.
    fn swap_off(&mut self, path: &str) -> Result<()>;
    /// Runs a program and waits.
    fn run(&mut self, command: &[String]) -> Result<()>;
    /// The network; None where there is none to change.
    fn net(&mut self) -> Option<&mut dyn NetBackend>;
}

/// This machine.
pub struct System {
    root: PathBuf,
    programs: Programs,
    net: crate::net::Kernel,
}

impl System {
    /// This machine, files below `/`.
    pub fn new() -> Self {
        Self {
            root: PathBuf::from("/"),
            programs: Programs::default(),
            net: crate::net::Kernel::default(),
        }
    }
}

impl Default for System {
    fn default() -> Self {
        Self::new()
    }
}

impl Effects for System {
    fn root(&self) -> &Path {
        &self.root
    }

    fn hold(&mut self, lock: Option<Lock>) {
        self.net.hold(lock.clone());
        self.programs.hold(lock);
    }

    fn load_module(&mut self, name: &str, parameters: &[(String, String)]) -> Result<()> {
        let mut command = vec!["modprobe".to_owned(), "--".to_owned(), name.to_owned()];
        command.extend(parameters.iter().map(|(key, value)| format!("{key}={value}")));
        self.programs.run(&command)
    }

    fn unload_module(&mut self, name: &str) -> Result<()> {
        let command = ["modprobe", "-r", "--", name].map(str::to_owned);
        self.programs.run(&command).map_err(|error| {
            Error::host(error.to_string())
                .remedy("stop all guests that use it, or restart the host")
        })
    }

    fn mount(&mut self, source: &str, point: &str, kind: &str, options: &str) -> Result<()> {
        kernel::mount(source, point, kind, options)
    }

    fn unmount(&mut self, point: &str) -> Result<()> {
        kernel::unmount(point)
    }

    fn swap_on(&mut self, path: &str) -> Result<()> {
        kernel::swap_on(path)
    }

    fn swap_off(&mut self, path: &str) -> Result<()> {
        kernel::swap_off(path)
    }

    fn run(&mut self, command: &[String]) -> Result<()> {
        self.programs.run(command)
    }

    fn net(&mut self) -> Option<&mut dyn NetBackend> {
        Some(&mut self.net)
    }
}

/// A fake tree: the kernel's answers are edits of its files.
pub struct TreeEffects {
    root: PathBuf,
    net: Option<Box<dyn NetBackend>>,
}

impl TreeEffects {
    /// A tree without a network.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into(), net: None }
    }

    /// A tree with a network (of a namespace, or fake).
    #[must_use]
    pub fn with_net(mut self, net: Box<dyn NetBackend>) -> Self {
        self.net = Some(net);
        self
    }

    fn edit(&self, path: &str, edit: impl FnOnce(&mut Vec<String>)) -> Result<()> {
        let place = self.root.join(path.trim_start_matches('/'));
        let text = std::fs::read_to_string(&place).unwrap_or_default();
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        edit(&mut lines);
        let mut text = lines.join("\n");
        if !text.is_empty() {
            text.push('\n');
        }
        std::fs::write(&place, text)
            .map_err(|error| Error::io("tree cannot be changed", &place, error))
    }
}

impl Effects for TreeEffects {
    fn root(&self) -> &Path {
        &self.root
    }

    /// A choice (`always [madvise] never`) is shown as the kernel shows it.
    fn write_value(&mut self, place: &Path, value: &str) -> std::io::Result<()> {
        let old = std::fs::read_to_string(place)?;
        let plain = old.replace(['[', ']'], "");
        // A read-only file stands for a setting that the kernel refuses to change.
        if std::fs::metadata(place)?.permissions().readonly() {
            return Err(std::io::Error::from_raw_os_error(libc::EIO));
        }
        if place.ends_with("cgroup.subtree_control") {
            let mut on: Vec<&str> = old.split_whitespace().collect();
            match value.split_at_checked(1) {
                Some(("+", name)) => on.push(name),
                Some(("-", name)) => on.retain(|word| *word != name),
                _ => return Err(std::io::Error::from_raw_os_error(libc::EINVAL)),
            }
            return std::fs::write(place, on.join(" ") + "\n");
        }
        if old.contains('[') && plain.split_whitespace().any(|word| word == value) {
            let words = plain.split_whitespace();
            let words =
                words.map(|word| if word == value { format!("[{word}]") } else { word.to_owned() });
            return std::fs::write(place, words.collect::<Vec<_>>().join(" ") + "\n");
        }
        std::fs::write(place, format!("{value}\n"))
    }

    fn make_group(&mut self, place: &Path) -> std::io::Result<()> {
        std::fs::create_dir(place)?;
        std::fs::write(place.join("cpuset.cpus"), "\n")?;
        std::fs::write(place.join("cpuset.cpus.partition"), "member\n")
    }

    fn remove_group(&mut self, place: &Path) -> std::io::Result<()> {
        std::fs::remove_dir_all(place)
    }

    /// An unloaded module's parameters are kept under a hidden name, as a real module keeps its defaults.
    fn load_module(&mut self, name: &str, parameters: &[(String, String)]) -> Result<()> {
        self.edit("/proc/modules", |lines| lines.push(format!("{name} 16384 0 - Live 0x0")))?;
        let fail = |path: &Path, error| Error::io("tree cannot be changed", path, error);
        let module = self.root.join(format!("sys/module/{name}"));
        let hidden = self.root.join(format!("sys/module/.{name}"));
        if hidden.exists() {
            std::fs::rename(&hidden, &module).map_err(|error| fail(&module, error))?;
        }
        let folder = module.join("parameters");
        std::fs::create_dir_all(&folder).map_err(|error| fail(&folder, error))?;
        for (key, value) in parameters {
            let file = folder.join(key);
            std::fs::write(&file, format!("{value}\n")).map_err(|error| fail(&file, error))?;
        }
        Ok(())
    }

    fn unload_module(&mut self, name: &str) -> Result<()> {
        self.edit("/proc/modules", |lines| {
            lines.retain(|line| line.split(' ').next() != Some(name));
        })?;
        let module = self.root.join(format!("sys/module/{name}"));
        if !module.exists() {
            return Ok(());
        }
        let hidden = self.root.join(format!("sys/module/.{name}"));
        std::fs::rename(&module, &hidden)
            .map_err(|error| Error::io("tree cannot be changed", &module, error))
    }

    fn mount(&mut self, source: &str, point: &str, kind: &str, options: &str) -> Result<()> {
        let line =
            format!("900 1 0:90 / {point} rw,relatime shared:90 - {kind} {source} {options}");
        self.edit("/proc/self/mountinfo", |lines| lines.push(line))
    }

    fn unmount(&mut self, point: &str) -> Result<()> {
        let field = format!(" / {point} ");
        self.edit("/proc/self/mountinfo", |lines| lines.retain(|line| !line.contains(&field)))
    }

    fn swap_on(&mut self, path: &str) -> Result<()> {
        let line = format!("{path} file 1024 0 -3");
        self.edit("/proc/swaps", |lines| lines.push(line))
    }

    fn swap_off(&mut self, path: &str) -> Result<()> {
        self.edit("/proc/swaps", |lines| lines.retain(|line| line.split(' ').next() != Some(path)))
    }

    /// Boot loader tools are imitated: grub-mkconfig writes a menu of one entry, grubby changes the entries.
    fn run(&mut self, command: &[String]) -> Result<()> {
        let write = |place: &Path, text: String| {
            std::fs::write(place, text)
                .map_err(|error| Error::io("tree cannot be changed", place, error))
        };
        if let Some(words) = command.iter().find_map(|word| word.strip_prefix("--args=")) {
            let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
            let folder = self.root.join("boot/loader/entries");
            for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
                let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
                if let Ok(Some(text)) = boot::edit_entry(&text, &words) {
                    write(&entry.path(), text)?;
                }
            }
            return Ok(());
        }
        let Some(pair) = command.windows(2).find(|pair| pair[0] == "-o") else {
            return Err(Error::usage("a tree does not know this program"));
        };
        let source =
            std::fs::read_to_string(self.root.join("etc/default/grub")).unwrap_or_default();
        let value = boot::grub_default_value(&source, "GRUB_CMDLINE_LINUX").unwrap_or_default();
        let menu =
            format!("menuentry 'Linux' {{\n\tlinux /vmlinuz root=/dev/sda2 ro {value}\n}}\n");
        write(&self.root.join(pair[1].trim_start_matches('/')), menu)
    }

    fn net(&mut self) -> Option<&mut dyn NetBackend> {
        match &mut self.net {
            Some(net) => Some(net.as_mut()),
            None => None,
        }
    }
}
