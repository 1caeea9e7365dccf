//! Loading the kernel on a thread of its own while the rest of the machine is made.
//!
//! Copying a kernel of some ten megabytes takes as long as all the rest of a start, which is mostly waiting for KVM. It
//! needs guest memory and nothing else, so that it begins as soon as there is memory and is waited for when vCPUs get
//! their registers.
//!
//! The files are opened before the thread begins, with the rights and on behalf of whoever the process is then. The
//! thread opens nothing, and ends before the guest runs.

use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use nix::unistd::{Pid, gettid};

use super::boot;
use super::config::MachineConfig;
use crate::boot::kernel::Files;
use crate::boot::registers::Entry;
use crate::mem::Memory;
use crate::{Error, Result};

/// The thread.
#[derive(Debug)]
pub struct Loading {
    thread: Option<JoinHandle<Result<Entry>>>,
    id: Arc<OnceLock<Pid>>,
}

impl Loading {
    /// Opens the files and begins to load them.
    ///
    /// # Errors
    /// When a file cannot be opened.
    pub fn start(config: &MachineConfig, memory: &Arc<Memory>) -> Result<Self> {
        let files = Files::open(&config.kernel.kernel, &config.kernel.initrds)?;
        let (config, memory) = (config.clone(), Arc::clone(memory));
        let id = Arc::<OnceLock<Pid>>::default();
        let told = Arc::clone(&id);
        let thread = std::thread::Builder::new()
            .name("load".into())
            .spawn(move || {
                // Set once, here.
                let _ = told.set(gettid());
                boot::load(&config, &memory, files)
            })
            .map_err(|e| Error::io(&e).context("cannot start a thread to load the kernel"))?;
        Ok(Loading { thread: Some(thread), id })
    }

    /// The thread's number, if it has not been waited for.
    pub fn thread_id(&self) -> Option<i32> {
        self.thread.as_ref().map(|_| self.id.wait().as_raw())
    }

    /// Waits for it; how the first vCPU begins. `None` when that was asked before.
    ///
    /// # Errors
    /// What is wrong with the kernel, or that there is no room for it.
    pub fn wait(&mut self) -> Result<Option<Entry>> {
        match self.thread.take().map(JoinHandle::join) {
            None => Ok(None),
            Some(Ok(loaded)) => loaded.map(Some),
            Some(Err(panic)) => std::panic::resume_unwind(panic),
        }
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            // The machine was not built, for another reason.
            let _ = thread.join();
        }
    }
}
