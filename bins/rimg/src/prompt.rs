//! Asking for passphrases on the terminal, without showing them.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::{Arc, Mutex, PoisonError};

use imgcore::crypto::SecretBytes;
use imgcore::opts::OptError;
use imgcore::opts::secret::{Ask, Asking};

/// Asks once for each image.
#[derive(Default)]
pub struct Prompt {
    /// What was answered, by image.
    known: Mutex<HashMap<String, SecretBytes>>,
}

/// Somebody to ask: where people type and read. A script gets qemu-img's error instead.
pub fn on_terminal() -> Option<Arc<dyn Ask>> {
    let there = std::io::stdin().is_terminal() && std::io::stderr().is_terminal();
    there.then(|| Arc::new(Prompt::default()) as Arc<dyn Ask>)
}

fn ask(question: &str) -> Result<SecretBytes, OptError> {
    rpassword::prompt_password(question)
        .map(|answer| SecretBytes::new(answer.into_bytes()))
        .map_err(|e| OptError::new(format!("cannot ask for a passphrase: {e}")))
}

impl Ask for Prompt {
    fn passphrase(&self, image: &str, asking: Asking) -> Result<SecretBytes, OptError> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = known.get(image) {
            return Ok(answer.clone());
        }
        let answer = match asking {
            Asking::Open => ask(&format!("Passphrase of '{image}': "))?,
            Asking::Create => {
                let first = ask(&format!("New passphrase for '{image}': "))?;
                if first.is_empty() {
                    return Err(OptError::new("the passphrase is empty"));
                }
                if ask("The same again: ")? != first {
                    return Err(OptError::new("the two passphrases differ"));
                }
                first
            }
        };
        known.insert(image.to_owned(), answer.clone());
        Ok(answer)
    }
}
