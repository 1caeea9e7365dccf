//! Options that were given to a protocol driver, in dotted form, taken one after the other.

use super::OptError;

/// The options that nobody has taken yet.
pub(super) struct Given<'a> {
    driver: &'a str,
    left: Vec<(String, String)>,
}

impl<'a> Given<'a> {
    /// The options of `driver`.
    pub fn new(driver: &'a str, options: &[(String, String)]) -> Self {
        Given { driver, left: options.to_vec() }
    }

    /// Takes the first option that has one of these names.
    pub fn take(&mut self, names: &[&str]) -> Option<String> {
        let at = self.left.iter().position(|(key, _)| names.contains(&key.as_str()))?;
        Some(self.left.remove(at).1)
    }

    /// Nothing more is known to the driver.
    ///
    /// # Errors
    /// When something is left: an option that the driver does not have, or one that was given under two names.
    pub fn end(self) -> Result<(), OptError> {
        match self.left.first() {
            None => Ok(()),
            Some((key, _)) => Err(OptError::new(format!(
                "Block protocol '{}' doesn't support the option '{key}'",
                self.driver
            ))),
        }
    }
}
