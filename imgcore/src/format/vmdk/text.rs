//! Writing a new descriptor.

use std::fmt::Write;

use super::descriptor::NO_PARENT;
use super::layout::SECTOR;

/// What a new descriptor says.
pub(super) struct NewDescriptor<'a> {
    pub cid: u32,
    pub parent: Option<(&'a str, u32)>,
    pub create_type: &'a str,
    /// Complete lines.
    pub extents: &'a str,
    pub hw_version: &'a str,
    pub tools_version: &'a str,
    pub adapter: &'a str,
    /// Bytes of the disk.
    pub size: u64,
}

impl NewDescriptor<'_> {
    /// The text, with the geometry that QEMU computes.
    pub(super) fn text(&self) -> String {
        let heads = if self.adapter == "ide" { 16 } else { 255 };
        let cylinders = self.size / (63 * heads * SECTOR);
        let parent_cid = self.parent.map_or(NO_PARENT, |(_, cid)| cid);
        let mut text = format!(
            "# Disk DescriptorFile\nversion=1\nCID={:08x}\nparentCID={parent_cid:08x}\ncreateType=\"{}\"\n",
            self.cid, self.create_type
        );
        // Writing to a string cannot fail.
        let _ = match self.parent {
            Some((name, _)) => writeln!(text, "parentFileNameHint=\"{name}\""),
            None => writeln!(text),
        };
        let _ = write!(
            text,
            "# Extent description\n{}\n# The Disk Data Base\n#DDB\n\n\
             ddb.virtualHWVersion = \"{}\"\n\
             ddb.geometry.cylinders = \"{cylinders}\"\n\
             ddb.geometry.heads = \"{heads}\"\n\
             ddb.geometry.sectors = \"63\"\n\
             ddb.adapterType = \"{}\"\n\
             ddb.toolsVersion = \"{}\"\n",
            self.extents, self.hw_version, self.adapter, self.tools_version
        );
        text
    }
}
