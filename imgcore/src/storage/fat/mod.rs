//! A folder as a disk with a FAT file system, for reading.
//!
//! * `tree`: what is in the folder when it is opened; names, sizes, times.
//! * `names`: short names and the entries of long ones.
//! * `layout`: where everything lies on the disk; boot sectors and tables.
//! * [`FatStorage`]: the disk; files are read where they are.
//!
//! # The disk
//!
//! A hard disk has a master boot record and one partition from sector 2048 on; a floppy disk begins with the file
//! system. Two copies of the table, the root folder (in the data area with FAT32), then folders and files, each in one
//! run of clusters, folders before files. What follows is free and reads as zeroes. FAT16 is taken up to what 64000
//! clusters of 32 KiB hold, FAT32 beyond ("Microsoft FAT Specification", August 2005).
//!
//! # What a folder may hold
//!
//! Files and folders; symbolic links to files inside the folder. Anything else, names that FAT cannot hold, names that
//! differ only in case, and files of 4 GiB and more are errors that name the file: nothing is left out silently. The
//! folder is looked at once; a file that is changed later cannot be read any more. Times are shown in UTC.

mod layout;
mod names;
mod store;
mod tree;

pub use store::FatStorage;

#[cfg(test)]
mod tests;
