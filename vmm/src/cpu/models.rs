//! Named processors: vendor, family, model, and features, each as a parent and what it adds.

use super::features;

/// Who made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// GenuineIntel.
    Intel,
    /// AuthenticAMD.
    Amd,
}

/// A named processor.
#[derive(Debug)]
pub struct Model {
    /// Its name for `-cpu`.
    pub name: &'static str,
    /// One line for `-cpu help`; the brand string in CPUID too.
    pub title: &'static str,
    /// Maker; guests see the host's all the same.
    pub vendor: Vendor,
    /// Family, model, stepping.
    pub signature: (u32, u32, u32),
    /// The model whose features it has as well.
    parent: &'static str,
    /// What it adds, and with `-` before it what it lacks.
    adds: &'static str,
}

const fn intel(
    name: &'static str,
    title: &'static str,
    signature: (u32, u32, u32),
    parent: &'static str,
    adds: &'static str,
) -> Model {
    Model { name, title, vendor: Vendor::Intel, signature, parent, adds }
}

const fn amd(
    name: &'static str,
    title: &'static str,
    signature: (u32, u32, u32),
    parent: &'static str,
    adds: &'static str,
) -> Model {
    Model { name, title, vendor: Vendor::Amd, signature, parent, adds }
}

const I486: &str = "fpu vme pse";
const PENTIUM: &str = "fpu vme pse de tsc msr mce cx8 mmx";
/// The Pentium Pro and, with two generations of vector instructions, most of what came later.
const PPRO: &str = "fpu vme pse de tsc msr mce cx8 pge cmov pat fxsr mmx sse sse2 pae sep apic mtrr mca \
     clflush pse36";

/// All models. Later ones may refer to earlier ones only.
pub static MODELS: &[Model] = &[
    intel("base", "Pentium Pro with SSE2; only a parent for others", (6, 1, 3), "", PPRO),
    intel("486", "Intel 486", (4, 8, 0), "", I486),
    intel("pentium", "Intel Pentium", (5, 4, 3), "", PENTIUM),
    intel(
        "pentium2",
        "Intel Pentium II",
        (6, 5, 2),
        "pentium",
        "pae sep mtrr pge mca cmov pat pse36 fxsr apic",
    ),
    intel("pentium3", "Intel Pentium III", (6, 7, 3), "pentium2", "sse"),
    amd("athlon", "AMD Athlon", (6, 2, 3), "pentium2", "mmxext 3dnow 3dnowext"),
    amd("qemu32", "QEMU Virtual CPU version 2.5+", (15, 6, 1), "base", "sse3 cx16"),
    amd(
        "qemu64",
        "QEMU Virtual CPU version 2.5+",
        (15, 107, 1),
        "qemu32",
        "syscall nx lm lahf-lm svm",
    ),
    intel("kvm32", "Common 32-bit KVM processor", (15, 6, 1), "base", "sse3"),
    intel("kvm64", "Common KVM processor", (15, 6, 1), "kvm32", "cx16 syscall nx lm"),
    intel(
        "coreduo",
        "Genuine Intel(R) CPU           T2600  @ 2.16GHz",
        (6, 14, 8),
        "",
        "fpu vme pse de tsc msr mce cx8 pge cmov pat fxsr mmx sse sse2 pae sep apic mtrr mca clflush ss sse3 nx",
    ),
    intel(
        "n270",
        "Intel(R) Atom(TM) CPU N270   @ 1.60GHz",
        (6, 28, 2),
        "coreduo",
        "ssse3 movbe lahf-lm",
    ),
    intel(
        "core2duo",
        "Intel(R) Core(TM)2 Duo CPU     T7700  @ 2.40GHz",
        (6, 15, 11),
        "coreduo",
        "pse36 ssse3 cx16 syscall lm lahf-lm",
    ),
    amd(
        "phenom",
        "AMD Phenom(tm) 9550 Quad-Core Processor",
        (16, 2, 3),
        "qemu64",
        "mmxext fxsr-opt pdpe1gb rdtscp 3dnow 3dnowext popcnt abm sse4a cr8legacy misalignsse",
    ),
    intel(
        "Conroe",
        "Intel Celeron_4x0 (Conroe/Merom Class Core 2)",
        (6, 15, 3),
        "base",
        "ssse3 sse3 syscall nx lm lahf-lm",
    ),
    intel(
        "Penryn",
        "Intel Core 2 Duo P9xxx (Penryn Class Core 2)",
        (6, 23, 3),
        "Conroe",
        "cx16 sse4.1",
    ),
    intel(
        "Nehalem",
        "Intel Core i7 9xx (Nehalem Class Core i7)",
        (6, 26, 3),
        "Penryn",
        "popcnt sse4.2",
    ),
    intel(
        "Westmere",
        "Westmere E56xx/L56xx/X56xx (Nehalem-C)",
        (6, 44, 1),
        "Nehalem",
        "aes pclmulqdq",
    ),
    intel(
        "SandyBridge",
        "Intel Xeon E312xx (Sandy Bridge)",
        (6, 42, 1),
        "Westmere",
        "avx xsave tsc-deadline x2apic rdtscp xsaveopt",
    ),
    intel(
        "IvyBridge",
        "Intel Xeon E3-12xx v2 (Ivy Bridge)",
        (6, 58, 9),
        "SandyBridge",
        "fsgsbase smep erms f16c rdrand",
    ),
    intel(
        "Haswell",
        "Intel Core Processor (Haswell)",
        (6, 60, 4),
        "IvyBridge",
        "fma pcid movbe abm bmi1 bmi2 avx2 invpcid hle rtm",
    ),
    intel(
        "Haswell-noTSX",
        "Intel Core Processor (Haswell, no TSX)",
        (6, 60, 1),
        "Haswell",
        "-hle -rtm",
    ),
    intel(
        "Broadwell",
        "Intel Core Processor (Broadwell)",
        (6, 61, 2),
        "Haswell",
        "rdseed adx smap 3dnowprefetch",
    ),
    intel(
        "Broadwell-noTSX",
        "Intel Core Processor (Broadwell, no TSX)",
        (6, 61, 2),
        "Broadwell",
        "-hle -rtm",
    ),
    intel(
        "Skylake-Client",
        "Intel Core Processor (Skylake)",
        (6, 94, 3),
        "Broadwell",
        "xsavec xgetbv1",
    ),
    intel(
        "Skylake-Client-noTSX-IBRS",
        "Intel Core Processor (Skylake, IBRS, no TSX)",
        (6, 94, 3),
        "Skylake-Client",
        "spec-ctrl -hle -rtm",
    ),
    intel(
        "Skylake-Server",
        "Intel Xeon Processor (Skylake)",
        (6, 85, 4),
        "Skylake-Client",
        "pdpe1gb clwb clflushopt avx512f avx512dq avx512bw avx512cd avx512vl",
    ),
    intel(
        "Skylake-Server-noTSX-IBRS",
        "Intel Xeon Processor (Skylake, IBRS, no TSX)",
        (6, 85, 4),
        "Skylake-Server",
        "spec-ctrl -hle -rtm",
    ),
    intel(
        "Cascadelake-Server",
        "Intel Xeon Processor (Cascadelake)",
        (6, 85, 6),
        "Skylake-Server",
        "avx512vnni spec-ctrl ssbd",
    ),
    intel(
        "Cascadelake-Server-noTSX",
        "Intel Xeon Processor (Cascadelake, no TSX)",
        (6, 85, 6),
        "Cascadelake-Server",
        "-hle -rtm arch-capabilities",
    ),
    intel(
        "Icelake-Server",
        "Intel Xeon Processor (Icelake)",
        (6, 134, 0),
        "Cascadelake-Server",
        "avx512vbmi umip avx512vbmi2 gfni vaes vpclmulqdq avx512bitalg avx512-vpopcntdq la57 wbnoinvd",
    ),
    intel(
        "Icelake-Server-noTSX",
        "Intel Xeon Processor (Icelake, no TSX)",
        (6, 134, 0),
        "Icelake-Server",
        "-hle -rtm",
    ),
    intel(
        "SapphireRapids",
        "Intel Xeon Processor (SapphireRapids)",
        (6, 143, 4),
        "Icelake-Server-noTSX",
        "avx512ifma sha-ni rdpid bus-lock-detect fsrm serialize avx512-fp16 xsaves arch-capabilities",
    ),
    amd(
        "Opteron_G1",
        "AMD Opteron 240 (Gen 1 Class Opteron)",
        (15, 6, 1),
        "base",
        "sse3 syscall nx lm",
    ),
    amd(
        "Opteron_G2",
        "AMD Opteron 22xx (Gen 2 Class Opteron)",
        (15, 6, 1),
        "Opteron_G1",
        "cx16 svm lahf-lm",
    ),
    amd(
        "Opteron_G3",
        "AMD Opteron 23xx (Gen 3 Class Opteron)",
        (16, 2, 3),
        "Opteron_G2",
        "popcnt monitor rdtscp misalignsse sse4a abm",
    ),
    amd(
        "Opteron_G4",
        "AMD Opteron 62xx class CPU",
        (21, 1, 2),
        "Opteron_G3",
        "-monitor avx xsave aes sse4.2 sse4.1 ssse3 pclmulqdq pdpe1gb fma4 xop 3dnowprefetch",
    ),
    amd("Opteron_G5", "AMD Opteron 63xx class CPU", (21, 2, 0), "Opteron_G4", "f16c fma tbm"),
    amd(
        "EPYC",
        "AMD EPYC Processor",
        (23, 1, 2),
        "Opteron_G3",
        "-monitor avx xsave aes sse4.2 sse4.1 ssse3 pclmulqdq pdpe1gb rdrand f16c movbe fma fxsr-opt mmxext osvw 3dnowprefetch cr8legacy topoext fsgsbase bmi1 avx2 smep bmi2 rdseed adx smap clflushopt sha-ni xsaveopt xsavec xgetbv1",
    ),
    amd(
        "EPYC-Rome",
        "AMD EPYC-Rome Processor",
        (23, 49, 0),
        "EPYC",
        "clwb umip rdpid clzero xsaveerptr wbnoinvd ibpb amd-stibp perfctr-core",
    ),
    amd(
        "EPYC-Milan",
        "AMD EPYC-Milan Processor",
        (25, 1, 1),
        "EPYC-Rome",
        "pcid invpcid erms fsrm pku vaes vpclmulqdq ibrs amd-ssbd",
    ),
];

/// Finds a model by name; Intel's and AMD's names may be written in any case.
pub fn find(name: &str) -> Option<&'static Model> {
    MODELS
        .iter()
        .find(|m| m.name == name)
        .or_else(|| MODELS.iter().find(|m| m.name.eq_ignore_ascii_case(name)))
}

impl Model {
    /// Its features: one mask for each of [`features::WORDS`].
    pub fn words(&self) -> Vec<u32> {
        let mut words = match find(self.parent) {
            Some(parent) => parent.words(),
            None => vec![0; features::WORDS.len()],
        };
        for item in self.adds.split_whitespace() {
            let (name, on) = match item.strip_prefix('-') {
                Some(name) => (name, false),
                None => (item, true),
            };
            if let Some((word, mask)) = features::find(name) {
                if on {
                    words[word] |= mask;
                } else {
                    words[word] &= !mask;
                }
            }
        }
        words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(model: &str, flag: &str) -> bool {
        let (word, mask) = features::find(flag).unwrap();
        find(model).unwrap().words()[word] & mask != 0
    }

    #[test]
    fn the_table_is_sound() {
        for (i, m) in MODELS.iter().enumerate() {
            assert!(
                m.parent.is_empty() || MODELS[..i].iter().any(|p| p.name == m.parent),
                "{}",
                m.name
            );
            assert_eq!(MODELS.iter().filter(|o| o.name.eq_ignore_ascii_case(m.name)).count(), 1);
            for item in m.adds.split_whitespace() {
                let name = item.strip_prefix('-').unwrap_or(item);
                assert!(features::find(name).is_some(), "{}: {name}", m.name);
            }
            assert!(m.title.len() <= 48, "{}: the brand string has 48 bytes", m.name);
        }
    }

    #[test]
    fn some_facts() {
        assert!(has("qemu64", "lm") && has("qemu64", "svm") && !has("qemu32", "lm"));
        assert!(has("Nehalem", "sse4.2") && !has("Nehalem", "aes") && has("Westmere", "aes"));
        assert!(!has("Haswell-noTSX", "rtm") && has("Haswell", "rtm"));
        assert!(has("Broadwell-noTSX", "smap") && !has("coreduo", "lm"));
    }
}
