//! `/proc/cpuinfo` of x86: the first processor's flags, and what can differ between processors.

use std::collections::BTreeSet;

/// Who made the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vendor {
    /// GenuineIntel, and CentaurHauls and Shanghai, which have VMX.
    Intel,
    /// AuthenticAMD and HygonGenuine.
    Amd,
    /// Anything else.
    Other,
}

/// The parsed file.
#[derive(Debug, Clone)]
pub struct CpuInfo {
    /// Maker.
    pub vendor: Vendor,
    /// `model name`.
    pub model: String,
    /// `flags` of the first processor.
    pub flags: BTreeSet<String>,
    /// `vmx flags` of the first processor (Linux 5.9 and newer).
    pub vmx_flags: BTreeSet<String>,
    /// Processors listed.
    pub count: usize,
    /// Processors without vmx and svm although the first one has it.
    pub without_virt: Vec<usize>,
}

impl CpuInfo {
    /// Parses the file; an empty or foreign one gives an empty result.
    pub fn parse(text: &str) -> Self {
        let mut info = Self {
            vendor: Vendor::Other,
            model: String::new(),
            flags: BTreeSet::new(),
            vmx_flags: BTreeSet::new(),
            count: 0,
            without_virt: Vec::new(),
        };
        let words = |value: &str| value.split_whitespace().map(str::to_owned).collect();
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match key.trim() {
                "processor" => info.count += 1,
                "vendor_id" if info.count <= 1 => {
                    info.vendor = match value {
                        "GenuineIntel" | "CentaurHauls" | "Shanghai" => Vendor::Intel,
                        "AuthenticAMD" | "HygonGenuine" => Vendor::Amd,
                        _ => Vendor::Other,
                    };
                }
                "model name" if info.model.is_empty() => value.clone_into(&mut info.model),
                "flags" if info.count <= 1 => info.flags = words(value),
                "flags"
                    if info.virt_flag().is_some()
                        && !value.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") =>
                {
                    info.without_virt.push(info.count.saturating_sub(1));
                }
                "vmx flags" if info.count <= 1 => info.vmx_flags = words(value),
                _ => {}
            }
        }
        info
    }

    /// Whether the first processor has a flag.
    pub fn has(&self, flag: &str) -> bool {
        self.flags.contains(flag)
    }

    /// `vmx` or `svm`, when there is one.
    pub fn virt_flag(&self) -> Option<&'static str> {
        ["vmx", "svm"].into_iter().find(|flag| self.has(flag))
    }
}
