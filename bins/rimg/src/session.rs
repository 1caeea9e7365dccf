//! Under which name the program was called, and what follows from it.

use std::path::Path;

/// One run of the program.
#[derive(Clone, Debug)]
pub struct Session {
    /// The name in messages.
    pub program: String,
    /// Called as qemu-img: then it does what qemu-img does, also where that is careless
    /// (overwriting files, following every name in an image).
    pub as_qemu_img: bool,
}

impl Session {
    /// From `argv[0]`.
    pub fn new(argv0: &str) -> Self {
        let as_qemu_img = Path::new(argv0).file_name().is_some_and(|n| n == "qemu-img");
        let program = if as_qemu_img { "qemu-img" } else { "rimg" };
        Session { program: program.to_owned(), as_qemu_img }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert!(Session::new("/usr/bin/qemu-img").as_qemu_img);
        assert_eq!(Session::new("./rimg-0.1").program, "rimg");
        assert_eq!(Session::new("").program, "rimg");
    }
}
