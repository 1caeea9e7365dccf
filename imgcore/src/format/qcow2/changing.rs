//! The tables in the hands of somebody who changes them.

use std::ops::{Deref, DerefMut};
use std::sync::{MutexGuard, PoisonError, RwLock, RwLockWriteGuard};

use super::image::Qcow2Image;
use super::tables::Tables;

/// Exclusive use of the tables. Two locks make it: one keeps others from changing anything, the other also
/// from looking. [`ChangingTables::wait`] gives the second one back for a while, and never the first.
#[derive(Debug)]
pub struct ChangingTables<'a> {
    tables: &'a RwLock<Tables>,
    /// `None` only inside [`ChangingTables::wait`], which takes the object exclusively.
    guard: Option<RwLockWriteGuard<'a, Tables>>,
    _changes: MutexGuard<'a, ()>,
}

impl<'a> ChangingTables<'a> {
    /// Waits until nobody else has them.
    pub fn of(image: &'a Qcow2Image) -> Self {
        let changes = image.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let guard = image.tables.write().unwrap_or_else(PoisonError::into_inner);
        ChangingTables { tables: &image.tables, guard: Some(guard), _changes: changes }
    }

    /// Does something that takes long and does not need the tables, while others may read them.
    pub fn wait<T>(&mut self, work: impl FnOnce() -> T) -> T {
        self.guard = None;
        let done = work();
        self.guard = Some(self.tables.write().unwrap_or_else(PoisonError::into_inner));
        done
    }
}

impl Deref for ChangingTables<'_> {
    type Target = Tables;

    #[allow(clippy::expect_used)]
    fn deref(&self) -> &Tables {
        self.guard.as_deref().expect("locked outside of wait")
    }
}

impl DerefMut for ChangingTables<'_> {
    #[allow(clippy::expect_used)]
    fn deref_mut(&mut self) -> &mut Tables {
        self.guard.as_deref_mut().expect("locked outside of wait")
    }
}
