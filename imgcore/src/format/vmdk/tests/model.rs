//! Random operations against a vector of bytes.

use proptest::prelude::*;

use super::{Dir, content, pattern};
use crate::format::{Access, ZeroSpace};

#[derive(Clone, Debug)]
enum Op {
    Write { at: usize, len: usize, seed: u64 },
    Zero { at: usize, len: usize },
    Flush,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (any::<usize>(), 1usize..200_000, any::<u64>())
            .prop_map(|(at, len, seed)| Op::Write { at, len, seed }),
        3 => (any::<usize>(), 1usize..300_000).prop_map(|(at, len)| Op::Zero { at, len }),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ]
}

fn run(options: &[(&str, &str)], size: usize, below: bool, ops: &[Op]) {
    let dir = Dir::new();
    let mut model = vec![0u8; size];
    let base = dir.named("base.vmdk");
    if below {
        base.create(size as u64 / 2, &[]).unwrap();
        let node = base.node(Access::Write);
        let bytes = pattern(300_000, 7);
        node.write(100_000, &bytes).unwrap();
        node.close().unwrap();
        model[100_000..400_000].copy_from_slice(&bytes);
        let image = base.open(Access::Read).unwrap();
        dir.create_over(size as u64, options, Some(("base.vmdk", &*image))).unwrap();
    } else {
        dir.create(size as u64, options).unwrap();
    }
    let open = || {
        if below {
            dir.over(Access::Write, base.node(Access::Read))
        } else {
            dir.node(Access::Write)
        }
    };
    let mut node = open();
    for op in ops {
        match *op {
            Op::Write { at, len, seed } => {
                let at = at % size;
                let len = len.min(size - at);
                let bytes = pattern(len, seed);
                node.write(at as u64, &bytes).unwrap();
                model[at..at + len].copy_from_slice(&bytes);
            }
            Op::Zero { at, len } => {
                let at = at % size;
                let len = len.min(size - at);
                node.write_zeroes(at as u64, len as u64, ZeroSpace::Unmap).unwrap();
                model[at..at + len].fill(0);
            }
            Op::Flush => node.flush().unwrap(),
            Op::Reopen => {
                node.close().unwrap();
                node = open();
            }
        }
        assert!(content(&node) == model, "after {op:?}");
    }
    node.close().unwrap();
    assert!(content(&open()) == model);
    drop(node);
    super::oracle::check_clean(&dir);
    if !below {
        super::oracle::same_content(&dir, &model);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, max_shrink_iters: 40, ..ProptestConfig::default() })]

    #[test]
    fn monolithic_sparse(ops in prop::collection::vec(op(), 1..25)) {
        run(&[], 2_000_384, false, &ops);
    }

    #[test]
    fn zeroed_grain(ops in prop::collection::vec(op(), 1..25)) {
        run(&[("zeroed_grain", "on")], 2_000_384, false, &ops);
    }

    #[test]
    fn over_a_parent(ops in prop::collection::vec(op(), 1..20)) {
        run(&[("zeroed_grain", "on")], 1_500_160, true, &ops);
        run(&[("subformat", "twoGbMaxExtentSparse")], 1_500_160, true, &ops);
    }

    #[test]
    fn flat(ops in prop::collection::vec(op(), 1..20)) {
        run(&[("subformat", "monolithicFlat")], 1_000_448, false, &ops);
    }
}

/// Several extents of odd sizes, flat and sparse and ZERO mixed: writes span them.
#[test]
fn mixed_extents() {
    let dir = Dir::new();
    for name in ["a.vmdk", "b.vmdk"] {
        dir.named(name).create(300 * 512, &[]).unwrap();
    }
    dir.put("f.bin", &vec![5; 1024 * 100]);
    dir.put(
        "x.vmdk",
        b"# Disk DescriptorFile\nversion=1\nCID=123\nparentCID=ffffffff\n\
          createType=\"twoGbMaxExtentSparse\"\n\
          RW 99 FLAT \"f.bin\" 7\nRW 201 SPARSE \"a.vmdk\"\nRW 300 SPARSE \"b.vmdk\"\nRW 11 FLAT \"f.bin\" 120\nRW 4 ZERO\n",
    );
    let size = 615 * 512;
    let mut model = vec![0; size];
    model[..99 * 512].fill(5);
    model[600 * 512..611 * 512].fill(5);
    let node = dir.node(Access::Write);
    assert!(content(&node) == model);
    let writable = 611 * 512;
    for (seed, at) in (0..40u64).zip((0usize..).step_by(7321)) {
        let at = at % (writable - 9000);
        let bytes = pattern(9000, seed);
        node.write(at as u64, &bytes).unwrap();
        model[at..at + 9000].copy_from_slice(&bytes);
        assert!(content(&node) == model, "write at {at}");
    }
    assert!(node.write(size as u64 - 512, &[1; 512]).is_err());
    node.close().unwrap();
    assert!(content(&dir.node(Access::Read)) == model);
    assert!(std::fs::read_to_string(dir.main()).unwrap().contains("\nCID="));
    assert!(!std::fs::read_to_string(dir.main()).unwrap().contains("CID=123\n"));
}

/// Writers in many threads get a disk that is right everywhere.
#[test]
fn threads() {
    let dir = Dir::new();
    dir.create(64 << 20, &[("zeroed_grain", "on")]).unwrap();
    let node = dir.node(Access::Write);
    std::thread::scope(|s| {
        for t in 0..4u64 {
            let node = &node;
            s.spawn(move || {
                for i in 0..60u64 {
                    let at = (i * 4 + t) * 33_000;
                    node.write(at, &pattern(33_000, at)).unwrap();
                    if i % 20 == 0 {
                        node.flush().unwrap();
                    }
                }
            });
        }
    });
    node.close().unwrap();
    let again = dir.node(Access::Read);
    for i in 0..240u64 {
        let mut have = vec![0; 33_000];
        again.read(i * 33_000, &mut have).unwrap();
        assert!(have == pattern(33_000, i * 33_000), "piece {i}");
    }
    super::oracle::check_clean(&dir);
}
