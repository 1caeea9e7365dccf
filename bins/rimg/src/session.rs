//! Under which name the program was called, and what follows from it.

use std::path::Path;

/// One run of the program.
#[derive(Clone, Debug)]
pub struct Session {
    /// The name in messages.
    pub program: String,
    /// The name in advice and in complaints about options: as qemu-img it is the whole of `argv[0]`.
    pub called: String,
    /// Called as qemu-img: then it does what qemu-img does, also where that is careless
    /// (overwriting files, following every name in an image).
    pub as_qemu_img: bool,
}

impl Session {
    /// From `argv[0]`.
    pub fn new(argv0: &str) -> Self {
        let as_qemu_img = Path::new(argv0).file_name().is_some_and(|n| n == "qemu-img");
        let program = if as_qemu_img { "qemu-img" } else { "rimg" };
        let called = if as_qemu_img { argv0 } else { program };
        Session { program: program.to_owned(), called: called.to_owned(), as_qemu_img }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let s = Session::new("/usr/bin/qemu-img");
        assert!(s.as_qemu_img);
        assert_eq!((s.program.as_str(), s.called.as_str()), ("qemu-img", "/usr/bin/qemu-img"));
        assert_eq!(Session::new("./rimg-0.1").program, "rimg");
        assert_eq!(Session::new("").program, "rimg");
    }
}
