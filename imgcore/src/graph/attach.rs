//! Taking a chain apart and putting it together again, for a disk whose file below is to be written
//! while the machine runs (`commit`).

use std::sync::Arc;

use super::Node;

impl Node {
    /// Splits a node from the one below it. The node alone shows zeroes where it has nothing: it must
    /// not be shown to anybody before it is attached again.
    #[must_use]
    pub fn detach(self) -> (Node, Option<Arc<Node>>) {
        let Node { image, backing, locks, access, writethrough, detect_zeroes, discard, name } =
            self;
        let top = Node {
            image,
            backing: None,
            locks,
            access,
            writethrough,
            detect_zeroes,
            discard,
            name,
        };
        (top, backing)
    }

    /// Puts a detached node onto one below it.
    #[must_use]
    pub fn attach(self, below: Option<Arc<Node>>) -> Node {
        Node { backing: below, ..self }
    }
}
