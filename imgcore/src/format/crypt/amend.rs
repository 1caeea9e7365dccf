//! Changing key slots of LUKS1 with `amend`, with QEMU's rules and words (QEMU
//! `docs/system/qemu-block-drivers.rst.inc`, `qapi/crypto.json`: `QCryptoBlockAmendOptionsLUKS`).

use super::luks1::{Luks1, SLOTS};
use crate::format::{CreateOptions, OptionKind, OptionSpec};
use crate::storage::Storage;
use crate::{Error, Result};

const fn row(name: &'static str, kind: OptionKind, help: &'static str) -> OptionSpec {
    OptionSpec { name, kind, help, default: None }
}

/// The table of the `luks` driver; qcow2's has the same with `encrypt.` before each name.
pub const AMEND_OPTIONS: &[OptionSpec] = &[
    row("iter-time", OptionKind::Number, "Time to spend in PBKDF in milliseconds"),
    row("keyslot", OptionKind::Number, "Select a single keyslot to modify explicitly"),
    row(
        "new-secret",
        OptionKind::Text,
        "New secret to set in the matching keyslots. Empty string to erase",
    ),
    row("old-secret", OptionKind::Text, "Select all keyslots that match this password"),
    row("state", OptionKind::Text, "Select new state of affected keyslots (active/inactive)"),
];

/// How the passphrases of an amendment are found.
pub type Lookup<'a> = &'a dyn Fn(&str) -> Result<crate::crypto::SecretBytes>;

/// One change of key slots.
pub struct Change<'a> {
    /// The options; names begin with `prefix`.
    pub options: &'a CreateOptions,
    /// `encrypt.` or nothing.
    pub prefix: &'a str,
    /// `--force`.
    pub force: bool,
    /// Passphrases by the identifier of their secret.
    pub secret: Lookup<'a>,
    /// The master key, from opening the image.
    pub master: &'a [u8],
}

impl Change<'_> {
    fn text(&self, name: &str) -> Option<&str> {
        self.options.text(&format!("{}{name}", self.prefix))
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.options.number(&format!("{}{name}", self.prefix))
    }

    /// The slot that was named.
    fn slot(&self) -> Result<Option<usize>> {
        let Some(number) = self.number("keyslot") else { return Ok(None) };
        usize::try_from(number).ok().filter(|&n| n < SLOTS).map(Some).ok_or_else(|| {
            Error::invalid(format!(
                "Invalid keyslot {} specified, must be between 0 and {}",
                number.cast_signed(),
                SLOTS - 1
            ))
        })
    }

    /// Carries the change out.
    ///
    /// # Errors
    /// Options that make no change, a passphrase that is not there, a slot in the way.
    pub fn apply(&self, header: &mut Luks1, storage: &dyn Storage) -> Result<()> {
        match self.text("state") {
            Some("active") => self.activate(header, storage),
            Some("inactive") => self.erase(header, storage),
            Some(other) => {
                Err(Error::invalid(format!("Parameter 'state' does not accept value '{other}'")))
            }
            None => Err(Error::invalid("Parameter 'state' is missing")),
        }
    }

    fn activate(&self, header: &mut Luks1, storage: &dyn Storage) -> Result<()> {
        let Some(new) = self.text("new-secret") else {
            return Err(Error::invalid("'new-secret' is required to activate a keyslot"));
        };
        if self.text("old-secret").is_some() {
            return Err(Error::invalid("'old-secret' must not be given when activating keyslots"));
        }
        let index =
            match self.slot()? {
                Some(index) if header.slots[index].active && !self.force => {
                    return Err(Error::invalid(format!(
                        "Refusing to overwrite active keyslot {index} - please erase it first"
                    )));
                }
                Some(index) => index,
                None => header.slots.iter().position(|s| !s.active).ok_or_else(|| {
                    Error::invalid("Can't add a keyslot - all keyslots are in use")
                })?,
            };
        let passphrase = (self.secret)(new)?;
        let time = self.number("iter-time").unwrap_or(2000);
        header
            .set_slot(storage, index, (self.master, &passphrase), time)
            .map_err(|e| e.context(format!("Failed to write to keyslot {index}")))
    }

    fn erase(&self, header: &mut Luks1, storage: &dyn Storage) -> Result<()> {
        for name in ["new-secret", "iter-time"] {
            let given = self.text(name).is_some() || self.number(name).is_some();
            if given {
                return Err(Error::invalid(format!(
                    "'{name}' must not be given when erasing keyslots"
                )));
            }
        }
        let old = self.text("old-secret").map(|id| (self.secret)(id)).transpose()?;
        let slots = match (self.slot()?, &old) {
            (Some(index), old) => {
                if let Some(old) = old
                    && header.slots[index].active
                    && header.open_slot(storage, index, old)?.is_none()
                {
                    return Err(Error::invalid(format!(
                        "Given keyslot {index} doesn't contain the given old password for erase \
                         operation"
                    )));
                }
                if !self.force && !header.slots[index].active {
                    return Err(Error::invalid(format!(
                        "Given keyslot {index} is already erased (inactive) "
                    )));
                }
                if !self.force && header.active_slots() == 1 {
                    return Err(Error::invalid(format!(
                        "Attempt to erase the only active keyslot {index} which will erase all \
                         the data in the image irreversibly - refusing operation"
                    )));
                }
                vec![index]
            }
            (None, Some(old)) => {
                let found = header.matching_slots(storage, old)?;
                if found.is_empty() {
                    return Err(Error::invalid(
                        "No keyslots match given (old) password for erase operation",
                    ));
                }
                if !self.force && found.len() == header.active_slots() {
                    return Err(Error::invalid(
                        "All the active keyslots match the (old) password that was given and \
                         erasing them will erase all the data in the image irreversibly - \
                         refusing operation",
                    ));
                }
                found
            }
            (None, None) => {
                return Err(Error::invalid(
                    "To erase keyslot(s), either explicit keyslot index or the password \
                     currently contained in them must be given",
                ));
            }
        };
        for index in slots {
            header
                .erase_slot(storage, index)
                .map_err(|e| e.context(format!("Failed to erase keyslot {index}")))?;
        }
        Ok(())
    }
}
