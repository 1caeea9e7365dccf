//! Where secrets are kept outside of the command line: files and the kernel's keyring.

use crate::opts::secret::SecretSource;

/// Reads a file or a key of the kernel's keyring (`keyctl(2)`), for
/// [`crate::opts::secret::SecretDef::load`].
///
/// # Errors
/// What the system says.
pub fn read(source: &SecretSource) -> std::io::Result<Vec<u8>> {
    match source {
        SecretSource::Data(text) => Ok(text.clone().into_bytes()),
        SecretSource::File(name) => std::fs::read(name),
        SecretSource::Keyring(serial) => {
            let other = |e: linux_keyutils::KeyError| {
                let errno = match e {
                    linux_keyutils::KeyError::AccessDenied => libc::EACCES,
                    linux_keyutils::KeyError::KeyDoesNotExist => libc::ENOKEY,
                    linux_keyutils::KeyError::KeyExpired => libc::EKEYEXPIRED,
                    linux_keyutils::KeyError::KeyRevoked => libc::EKEYREVOKED,
                    linux_keyutils::KeyError::PermissionDenied => libc::EPERM,
                    linux_keyutils::KeyError::OperationNotSupported => libc::EOPNOTSUPP,
                    _ => libc::EINVAL,
                };
                std::io::Error::from_raw_os_error(errno)
            };
            let key = linux_keyutils::Key::from_id(linux_keyutils::KeySerialId::new(*serial));
            key.read_to_vec().map_err(other)
        }
    }
}
