//! All character devices of a machine, by name.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::carrier::OnKey;
use super::config::CharConfig;
use super::device::Chardev;
use super::transport::Standard;
use crate::{Error, Result};

/// All character devices of a machine.
#[derive(Debug, Default)]
pub struct Chardevs(BTreeMap<String, Arc<Chardev>>);

impl Chardevs {
    /// Opens all of them, in the order given. `notice` gets lines for people at once.
    pub fn open(
        configs: &[(String, CharConfig)],
        mut standard: Standard,
        notice: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let mut all = BTreeMap::new();
        for (label, config) in configs {
            let device = Chardev::open(label, config, &mut standard, notice)?;
            if all.insert(label.clone(), device).is_some() {
                return Err(Error::invalid(format!("Duplicate ID '{label}' for chardev")));
            }
        }
        Ok(Chardevs(all))
    }

    /// The device of this name.
    ///
    /// # Errors
    /// When there is none.
    pub fn get(&self, label: &str) -> Result<&Arc<Chardev>> {
        self.0.get(label).ok_or_else(|| {
            Error::invalid(format!("chardev '{label}' not found"))
                .hint(format!("Make it: -chardev stdio,id={label}"))
        })
    }

    /// All of them, by name.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Chardev>> {
        self.0.values()
    }

    /// Starts their threads.
    pub fn start(&self, escape: u8, on_key: &OnKey) -> Result<()> {
        self.all().try_for_each(|c| c.start(escape, on_key.clone()))
    }

    /// Ends their threads, after what waits was sent as far as possible.
    pub fn stop(&self) {
        // All at once, so that several clients that do not read are waited for together.
        self.all().for_each(|c| c.begin_stop());
        self.all().for_each(|c| c.stop());
    }
}
