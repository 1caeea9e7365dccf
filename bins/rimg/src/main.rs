//! rimg
fn main(){}
