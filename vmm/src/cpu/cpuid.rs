//! The CPUID leaves of one vCPU.
//!
//! What the guest sees is what the model names, cut down to what the host can do, plus what KVM itself
//! provides whatever the model says (x2APIC, the TSC deadline timer, the hypervisor leaves). Leaves
//! that describe the topology are written anew for every vCPU.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

use super::features::{self, Register, WORDS, Word};
use super::models::{self, Model};
use super::topology::Topology;
use crate::num::len_u64;
use crate::{Error, Result};

/// `-cpu`, as plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuConfig {
    /// Model; `host` and `max` mean all that the host can do.
    pub model: String,
    /// Flags switched on and off, in order.
    pub flags: Vec<(String, Switch)>,
    /// Refuse to start when the host lacks something (`enforce`).
    pub enforce: bool,
    /// Tell the guest about KVM (`kvm=off` hides it).
    pub expose_kvm: bool,
}

/// On or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    /// `+flag`, `flag=on`.
    On,
    /// `-flag`, `flag=off`.
    Off,
}

impl Default for CpuConfig {
    /// QEMU's default for KVM guests.
    fn default() -> Self {
        CpuConfig { model: "qemu64".into(), flags: Vec::new(), enforce: false, expose_kvm: true }
    }
}

/// The leaves, the same for all vCPUs as yet, and what there is to warn about.
#[derive(Debug)]
pub struct Template {
    entries: Vec<kvm_cpuid_entry2>,
    /// Lines for people.
    pub warnings: Vec<String>,
}

const KVM_SIGNATURE: u32 = 0x4000_0000;
const KVM_FEATURES: u32 = 0x4000_0001;

/// Provided by KVM's own code, even where the model has never heard of it.
const ALWAYS: &[&str] = &["x2apic", "tsc-deadline", "hypervisor", "tsc-adjust"];

/// Works out the leaves for a model.
///
/// # Errors
/// For unknown models and flags, with the way to list them; with `enforce` for what the host lacks.
pub fn build(config: &CpuConfig, host: &CpuId) -> Result<Template> {
    let host = host.as_slice();
    let model = match config.model.as_str() {
        "host" | "max" => None,
        name => Some(models::find(name).ok_or_else(|| {
            Error::invalid(format!("unable to find CPU model '{name}'"))
                .hint("List the models with -cpu help")
        })?),
    };
    let supported: Vec<u32> = WORDS.iter().map(|w| read(host, w)).collect();
    let mut words = model.map_or_else(|| supported.clone(), Model::words);
    // Nested virtualization is asked for, not given along: it costs at every exit.
    for (flag, switch) in &config.flags {
        let (word, mask) = features::find(flag).ok_or_else(|| {
            Error::invalid(format!("Property '{}-x86_64-cpu.{flag}' not found", config.model))
                .hint("List the flags with -cpu help")
        })?;
        match switch {
            Switch::On => words[word] |= mask,
            Switch::Off => words[word] &= !mask,
        }
    }
    let mut warnings = Vec::new();
    for (i, word) in words.iter_mut().enumerate() {
        let missing = *word & !supported[i] & named(&WORDS[i]);
        for name in features::names(i, missing) {
            // qemu64 has svm since ever, and nobody has ever been warned about it.
            let asked = config.flags.iter().any(|(f, _)| features::find(f) == features::find(name));
            if asked || (model.is_some() && name != "svm") {
                warnings.push(format!(
                    "host doesn't support requested feature: CPUID.{:02X}H:{:?} [{name}]",
                    WORDS[i].leaf, WORDS[i].register
                ));
            }
        }
        *word &= supported[i];
    }
    if config.enforce && !warnings.is_empty() {
        return Err(Error::unsupported(warnings.join("; "))
            .hint("Leave out enforce, or those flags (-flag)"));
    }
    for name in ALWAYS {
        if let Some((word, mask)) = features::find(name) {
            let off = config.flags.iter().any(|(f, s)| f == name && *s == Switch::Off);
            words[word] |= if off { 0 } else { supported[word] & mask };
            if *name == "hypervisor" && !off {
                words[word] |= mask;
            }
        }
    }
    let mut entries: Vec<kvm_cpuid_entry2> = host
        .iter()
        .filter(|e| config.expose_kvm || !(KVM_SIGNATURE..=KVM_FEATURES).contains(&e.function))
        .copied()
        .collect();
    for (word, value) in WORDS.iter().zip(&words) {
        write(&mut entries, word, *value);
    }
    if let Some(model) = model {
        dress_up(&mut entries, model);
    }
    Ok(Template { entries, warnings })
}

/// Bits of a word that have names: the others are the host's business (`osxsave`, reserved bits).
fn named(word: &Word) -> u32 {
    (0..32).filter(|b: &usize| !word.names[*b].is_empty()).fold(0, |m, b| m | 1 << b)
}

fn slot(e: &mut kvm_cpuid_entry2, r: Register) -> &mut u32 {
    match r {
        Register::Eax => &mut e.eax,
        Register::Ebx => &mut e.ebx,
        Register::Ecx => &mut e.ecx,
        Register::Edx => &mut e.edx,
    }
}

fn read(entries: &[kvm_cpuid_entry2], word: &Word) -> u32 {
    entries
        .iter()
        .find(|e| e.function == word.leaf && e.index == word.sub)
        .map_or(0, |e| *slot(&mut e.clone(), word.register))
}

fn write(entries: &mut [kvm_cpuid_entry2], word: &Word, value: u32) {
    let keep = !named(word);
    if let Some(e) = entries.iter_mut().find(|e| e.function == word.leaf && e.index == word.sub) {
        let s = slot(e, word.register);
        // The feature bits that leaf 80000001 repeats from leaf 1 stay as the host has them.
        *s = (*s & keep) | value;
    }
}

/// Signature and brand string of a model. The vendor stays the host's, as in QEMU: which instructions
/// enter the kernel in compatibility mode depends on it, and the processor that runs is the host's.
fn dress_up(entries: &mut [kvm_cpuid_entry2], model: &Model) {
    let (family, number, stepping) = model.signature;
    let (low_family, ext_family) = (family.min(15), family.saturating_sub(15));
    let signature =
        stepping | (number & 15) << 4 | low_family << 8 | (number >> 4) << 16 | ext_family << 20;
    let mut brand = [0; 48];
    let n = model.title.len().min(47);
    brand[..n].copy_from_slice(&model.title.as_bytes()[..n]);
    let old = !model
        .words()
        .iter()
        .zip(WORDS)
        .any(|(v, w)| w.leaf >= 0xd && w.leaf < 0x4000_0000 && *v != 0);
    for e in entries.iter_mut() {
        match e.function {
            0 if old => e.eax = e.eax.min(0xd),
            1 | 0x8000_0001 => e.eax = signature,
            0x8000_0002..=0x8000_0004 => {
                let base = crate::num::index(u64::from(e.function - 0x8000_0002) * 16);
                let word = |i: usize| {
                    let b = &brand[base + 4 * i..base + 4 * i + 4];
                    u32::from_le_bytes([b[0], b[1], b[2], b[3]])
                };
                (e.eax, e.ebx, e.ecx, e.edx) = (word(0), word(1), word(2), word(3));
            }
            _ => {}
        }
    }
}

impl Template {
    /// The leaves of vCPU `index`.
    pub fn for_vcpu(&self, index: u32, topology: &Topology) -> Result<CpuId> {
        let mut entries = self.entries.clone();
        let apic = topology.apic_id(index);
        let logical = topology.cores * topology.threads;
        let amd = entries.iter().any(|e| e.function == 0 && e.ebx == u32::from_le_bytes(*b"Auth"));
        if amd && topology.threads > 1 && entries.iter().all(|e| e.function != 0x8000_001e) {
            entries.push(kvm_cpuid_entry2 { function: 0x8000_001e, ..Default::default() });
        }
        // Leaves 0xb and 0x1f are made anew.
        entries.retain(|e| e.function != 0xb && e.function != 0x1f);
        for e in &mut entries {
            match e.function {
                1 => {
                    e.ebx = (e.ebx & 0xff00) | 8 << 8 | apic << 24 | logical.min(255) << 16;
                    set(&mut e.edx, 28, logical > 1);
                }
                4 if e.eax & 0x1f != 0 => {
                    let sharing = if (e.eax >> 5) & 7 >= 3 { logical } else { topology.threads };
                    e.eax = (e.eax & 0x3fff)
                        | (pow2(sharing) - 1).min(0xfff) << 14
                        | (pow2(topology.cores) - 1).min(0x3f) << 26;
                }
                0x8000_0001 => {
                    // Several logical processors: AMD's old way to say cores.
                    set(&mut e.ecx, 1, amd && logical > 1);
                    // Without it guests take an AMD processor's threads for cores.
                    if amd && topology.threads > 1 {
                        set(&mut e.ecx, 22, true);
                    }
                }
                0x8000_0000 if amd && topology.threads > 1 => e.eax = e.eax.max(0x8000_001e),
                0x8000_0008 => {
                    let bits = topology.package_bits();
                    e.ecx =
                        if logical > 1 { (bits & 15) << 12 | (logical - 1).min(255) } else { 0 };
                }
                0x8000_001d => {
                    let sharing = if (e.eax >> 5) & 7 >= 3 { logical } else { topology.threads };
                    e.eax = (e.eax & 0x3fff) | (sharing - 1).min(0xfff) << 14;
                }
                0x8000_001e => {
                    let (socket, core, _) = topology.place(index);
                    e.eax = apic;
                    e.ebx = (topology.threads - 1) << 8 | (core & 0xff);
                    e.ecx = socket & 0xff;
                }
                _ => {}
            }
        }
        entries.extend(levels(topology, apic));
        if let Some(e) = entries.iter_mut().find(|e| e.function == 0) {
            e.eax = e.eax.clamp(0xb, 0x1e);
        }
        CpuId::from_entries(&entries).map_err(|e| {
            Error::invalid(format!(
                "{} leaves of CPUID are too many: {e:?}",
                len_u64(entries.len())
            ))
        })
    }
}

fn set(word: &mut u32, bit: u32, on: bool) {
    *word = (*word & !(1 << bit)) | (u32::from(on) << bit);
}

fn pow2(n: u32) -> u32 {
    n.max(1).next_power_of_two()
}

/// Leaf 0xb: threads in a core, then logical processors in a socket, then the end.
fn levels(t: &Topology, apic: u32) -> Vec<kvm_cpuid_entry2> {
    let level = |index: u32, eax: u32, ebx: u32, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax,
        ebx,
        ecx: kind << 8 | index,
        edx: apic,
        ..Default::default()
    };
    vec![
        level(0, t.thread_bits(), t.threads, 1),
        level(1, t.package_bits(), t.cores * t.threads, 2),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that can do everything.
    fn host() -> CpuId {
        let entry = |function, index| kvm_cpuid_entry2 {
            function,
            index,
            eax: if function == 0 { 0x1f } else { u32::MAX },
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        };
        let leaves = [
            (0, 0),
            (1, 0),
            (4, 0),
            (7, 0),
            (0xb, 0),
            (0xd, 0),
            (0xd, 1),
            (0x4000_0000, 0),
            (0x4000_0001, 0),
            (0x8000_0000, 0),
            (0x8000_0001, 0),
            (0x8000_0002, 0),
            (0x8000_0003, 0),
            (0x8000_0004, 0),
            (0x8000_0008, 0),
            (0x8000_001e, 0),
        ];
        CpuId::from_entries(&leaves.map(|(f, i)| entry(f, i))).unwrap()
    }

    fn leaf(c: &CpuId, f: u32, i: u32) -> kvm_cpuid_entry2 {
        *c.as_slice().iter().find(|e| e.function == f && e.index == i).unwrap()
    }

    fn config(model: &str, flags: &[(&str, Switch)]) -> CpuConfig {
        CpuConfig {
            model: model.into(),
            flags: flags.iter().map(|(f, s)| ((*f).to_owned(), *s)).collect(),
            ..CpuConfig::default()
        }
    }

    #[test]
    fn a_model_shows_its_own_features_only() {
        let t = build(&config("qemu64", &[("vmx", Switch::On), ("sse3", Switch::Off)]), &host())
            .unwrap();
        assert!(t.warnings.is_empty(), "{:?}", t.warnings);
        let c = t.for_vcpu(0, &Topology::default()).unwrap();
        let one = leaf(&c, 1, 0);
        assert_eq!(one.ecx & (1 << 5), 1 << 5, "vmx");
        assert_eq!(one.ecx & 1, 0, "sse3");
        assert_eq!(one.ecx & (1 << 28), 0, "avx");
        assert_eq!(one.ecx & (1 << 31), 1 << 31, "hypervisor");
        assert_eq!(one.ecx & (1 << 21), 1 << 21, "x2apic");
        assert_eq!(one.eax, 1 | 0xb << 4 | 15 << 8 | 6 << 16, "family 15 model 107 stepping 1");
        assert_eq!(leaf(&c, 0, 0).ebx, u32::MAX, "the host's vendor");
        assert_eq!(&leaf(&c, 0x8000_0002, 0).eax.to_le_bytes(), b"QEMU");
    }

    #[test]
    fn what_the_host_lacks_is_said_or_refused() {
        let mut poor = host();
        for e in poor.as_mut_slice().iter_mut().filter(|e| e.function == 1) {
            e.ecx &= !(1 << 25);
        }
        let t = build(&config("Westmere", &[]), &poor).unwrap();
        assert!(t.warnings.iter().any(|w| w.contains("[aes]")), "{:?}", t.warnings);
        let strict = CpuConfig { enforce: true, ..config("Westmere", &[]) };
        assert!(build(&strict, &poor).is_err());
        assert!(build(&config("nope", &[]), &poor).unwrap_err().to_string().contains("'nope'"));
        assert!(build(&config("host", &[("nope", Switch::On)]), &poor).is_err());
        let hidden = CpuConfig { expose_kvm: false, ..config("host", &[]) };
        let c = build(&hidden, &host()).unwrap().for_vcpu(0, &Topology::default()).unwrap();
        assert!(c.as_slice().iter().all(|e| e.function != KVM_SIGNATURE));
    }

    #[test]
    fn topology_is_in_every_leaf_that_has_it() {
        let t = build(&config("host", &[]), &host()).unwrap();
        let topology = Topology { cpus: 8, max_cpus: 8, sockets: 2, cores: 2, threads: 2 };
        let c = t.for_vcpu(5, &topology).unwrap();
        let one = leaf(&c, 1, 0);
        assert_eq!((one.ebx >> 24, (one.ebx >> 16) & 0xff, (one.edx >> 28) & 1), (5, 4, 1));
        let (a, b) = (leaf(&c, 0xb, 0), leaf(&c, 0xb, 1));
        assert_eq!((a.eax, a.ebx, a.ecx >> 8, a.edx), (1, 2, 1, 5));
        assert_eq!((b.eax, b.ebx, b.ecx >> 8), (2, 4, 2));
        let e = leaf(&c, 0x8000_001e, 0);
        assert_eq!((e.eax, e.ebx, e.ecx), (5, 1 << 8, 1));
        // An AMD host without topology leaves: threads need them.
        let mut amd = host();
        for e in amd.as_mut_slice() {
            match e.function {
                0 => e.ebx = u32::from_le_bytes(*b"Auth"),
                0x8000_0001 => e.ecx = 0,
                0x8000_0000 => e.eax = 0x8000_0008,
                0x8000_001e => e.function = 0x8000_0019,
                _ => {}
            }
        }
        let c = build(&config("qemu64", &[]), &amd).unwrap().for_vcpu(5, &topology).unwrap();
        assert_eq!(leaf(&c, 0x8000_001e, 0).ebx, 1 << 8);
        assert_eq!(leaf(&c, 0x8000_0001, 0).ecx & (1 << 22), 1 << 22);
        assert_eq!(leaf(&c, 0x8000_0000, 0).eax, 0x8000_001e);
        let single = t.for_vcpu(0, &Topology::default()).unwrap();
        assert_eq!(leaf(&single, 1, 0).edx & (1 << 28), 0);
    }
}
