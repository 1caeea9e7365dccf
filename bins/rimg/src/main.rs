//! rimg
fn main() {}
