//! Bus 0: the two ways into configuration space, and where BARs are mapped.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::config::next_place;
use super::{BarKind, ConfigSpace, Function, Identity, Placed};
use crate::bus::{Bus, Device, Effect};
use crate::devices::Lifecycle;
use crate::devices::acpi_pm::ResetRegister;
use crate::mem::layout::{PCI32, PCI32_LEN, PCI64_LEN};
use crate::num::low8;
use crate::vcpu::Buses;
use crate::{Error, Result};

/// Address port; the data ports follow.
pub const CONFIG_PORTS: u64 = 0xcf8;
/// Ports of both.
pub const CONFIG_PORTS_LEN: u64 = 8;
/// Ports from here on are for BARs.
const IO_WINDOW: u64 = 0xc000;

struct State {
    functions: BTreeMap<u8, Arc<dyn Function>>,
    /// Where BARs are mapped, by slot and function, and BAR.
    mapped: BTreeMap<(u8, u8), Placed>,
    address: u32,
}

/// The root of the only bus.
pub struct Root {
    state: Mutex<State>,
    /// One change of the layout at a time.
    relayout: Mutex<()>,
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.list().into_iter().map(|(at, f)| (at, f.name()));
        f.debug_map().entries(names).finish()
    }
}

impl Default for Root {
    fn default() -> Self {
        Root::new()
    }
}

impl Root {
    /// A bus with a host bridge in slot 0 and nothing else.
    pub fn new() -> Self {
        let mut functions: BTreeMap<u8, Arc<dyn Function>> = BTreeMap::new();
        functions.insert(0, Arc::new(HostBridge::default()));
        let state = State { functions, mapped: BTreeMap::new(), address: 0 };
        Root { state: Mutex::new(state), relayout: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lowest free slot.
    pub fn free_slot(&self) -> Result<u8> {
        let state = self.lock();
        (1..32)
            .find(|slot| !state.functions.contains_key(&(slot << 3)))
            .ok_or_else(|| Error::invalid("no free PCI slot: 31 devices are the most"))
    }

    /// Puts a function into a slot.
    ///
    /// # Errors
    /// When the slot is taken.
    pub fn insert(&self, slot: u8, function: Arc<dyn Function>) -> Result<()> {
        let mut state = self.lock();
        if slot > 31 {
            return Err(Error::invalid(format!("PCI slot {slot:#x} does not exist (0 to 0x1f)")));
        }
        if let Some(other) = state.functions.get(&(slot << 3)) {
            return Err(Error::invalid(format!(
                "PCI: slot {slot} function 0 not available for {}, in use by {}",
                function.name(),
                other.name()
            )));
        }
        state.functions.insert(slot << 3, function);
        Ok(())
    }

    /// All functions by slot and function number.
    pub fn list(&self) -> Vec<(u8, Arc<dyn Function>)> {
        self.lock().functions.iter().map(|(k, f)| (*k, f.clone())).collect()
    }

    fn function(&self, devfn: u8) -> Option<Arc<dyn Function>> {
        self.lock().functions.get(&devfn).cloned()
    }

    /// Places all BARs, as firmware would, and maps them.
    ///
    /// # Errors
    /// When a window is full.
    pub fn assign(&self, buses: &Buses, pci64: u64) -> Result<()> {
        let (mut io, mut low, mut high) = (IO_WINDOW, PCI32, pci64);
        for (devfn, function) in self.list() {
            for bar in function.bars() {
                let (next, end) = match bar.kind {
                    BarKind::Io => (&mut io, 0x1_0000),
                    BarKind::Memory32 => (&mut low, PCI32 + PCI32_LEN),
                    BarKind::Memory64 => (&mut high, pci64 + PCI64_LEN),
                };
                let at = match bar.kind {
                    BarKind::Io => crate::num::align_up(*next, bar.len),
                    _ => next_place(*next, bar.len),
                };
                if at + bar.len > end {
                    return Err(Error::invalid(format!(
                        "no room for BAR {} of {} in slot {}",
                        bar.bar,
                        function.name(),
                        devfn >> 3
                    )));
                }
                *next = at + bar.len;
                let offset = 0x10 + 4 * u16::from(bar.bar);
                let len = if bar.kind == BarKind::Memory64 { 8 } else { 4 };
                function.config_write(offset, &at.to_le_bytes()[..len]);
            }
            if !function.bars().is_empty() {
                function.config_write(4, &[3]);
            }
        }
        self.apply_layout(buses);
        Ok(())
    }

    /// Maps BARs where the guest has placed them. A BAR that the guest has put upon something else
    /// answers nowhere.
    pub fn apply_layout(&self, buses: &Buses) {
        let _one = self.relayout.lock().unwrap_or_else(PoisonError::into_inner);
        let functions = self.list();
        let mut wanted = BTreeMap::new();
        for (devfn, function) in &functions {
            for placed in function.decoded() {
                wanted.insert((*devfn, placed.bar), placed);
            }
        }
        let mapped = self.lock().mapped.clone();
        let mut now = BTreeMap::new();
        for (key, old) in &mapped {
            if wanted.get(key) == Some(old) {
                now.insert(*key, *old);
                continue;
            }
            bus(buses, old.kind).remove(old.base);
            if let Some((_, f)) = functions.iter().find(|(d, _)| *d == key.0) {
                f.bar_moved(key.1, None);
            }
        }
        for (key, placed) in wanted {
            let Some((_, f)) = functions.iter().find(|(d, _)| *d == key.0) else { continue };
            if now.contains_key(&key) {
                continue;
            }
            let name = format!("{} BAR {}", f.name(), placed.bar);
            let device = f.bar(placed.bar);
            if bus(buses, placed.kind).insert(&name, placed.base, placed.len, device).is_ok() {
                now.insert(key, placed);
                f.bar_moved(key.1, Some(placed.base));
            }
        }
        self.lock().mapped = now;
    }

    fn config_read(&self, devfn: u8, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let Some(f) = self.function(devfn) {
            f.config_read(ConfigSpace::offset(offset), data);
        }
    }

    fn config_write(&self, devfn: u8, offset: u64, data: &[u8]) -> Effect {
        match self.function(devfn) {
            Some(f) => f.config_write(ConfigSpace::offset(offset), data),
            None => Effect::None,
        }
    }
}

fn bus(buses: &Buses, kind: BarKind) -> &Bus {
    if kind == BarKind::Io { &buses.ports } else { &buses.mmio }
}

/// Ports 0xcf8 to 0xcff (PCI Local Bus 3.0, 3.2.2.3.2). A byte at 0xcf9 is the reset register.
#[derive(Debug)]
pub struct ConfigPorts(pub Arc<Root>);

impl ConfigPorts {
    /// The function and the offset of its register, when the address is enabled and on bus 0.
    fn selected(&self, offset: u64) -> Option<(u8, u64)> {
        let address = u64::from(self.0.lock().address);
        let here = address & 0x8000_0000 != 0 && (address >> 16) & 0xff == 0;
        here.then(|| (low8(address >> 8), (address & 0xfc) + (offset - 4)))
    }
}

impl Device for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset >= 4 {
            if let Some((devfn, at)) = self.selected(offset) {
                self.0.config_read(devfn, at, data);
            }
        } else if offset == 0 && data.len() == 4 {
            data.copy_from_slice(&self.0.lock().address.to_le_bytes());
        } else if offset == 1 {
            ResetRegister.read(0, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Effect {
        if offset >= 4 {
            return match self.selected(offset) {
                Some((devfn, at)) => self.0.config_write(devfn, at, data),
                None => Effect::None,
            };
        }
        match (offset, data) {
            (0, [a, b, c, d]) => {
                self.0.lock().address = u32::from_le_bytes([*a, *b, *c, *d]);
                Effect::None
            }
            (1, [_]) => ResetRegister.write(0, data),
            _ => Effect::None,
        }
    }
}

/// Configuration space in memory (PCI Express Base 4.0, 7.2.2).
#[derive(Debug)]
pub struct Ecam(pub Arc<Root>);

impl Device for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if offset >> 20 == 0 {
            self.0.config_read(low8(offset >> 12), offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) -> Effect {
        if offset >> 20 == 0 {
            self.0.config_write(low8(offset >> 12), offset, data)
        } else {
            Effect::None
        }
    }
}

/// What is in slot 0 of every machine.
#[derive(Debug)]
struct HostBridge(Mutex<ConfigSpace>);

impl Default for HostBridge {
    fn default() -> Self {
        // Red Hat's generic host bridge; class bridge, host.
        HostBridge(Mutex::new(ConfigSpace::new(&Identity {
            vendor: 0x1b36,
            device: 0x0008,
            class: (6, 0, 0),
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            ..Identity::default()
        })))
    }
}

impl Lifecycle for HostBridge {}

impl Function for HostBridge {
    fn name(&self) -> String {
        "host bridge".into()
    }
    fn config_read(&self, offset: u16, data: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }
    fn config_write(&self, offset: u16, data: &[u8]) -> Effect {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
        Effect::None
    }
    fn bars(&self) -> Vec<Placed> {
        Vec::new()
    }
    fn decoded(&self) -> Vec<Placed> {
        Vec::new()
    }
    fn bar(&self, _bar: u8) -> Arc<dyn Device> {
        Arc::new(ResetRegister)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Card(Mutex<ConfigSpace>, Mutex<Vec<(u8, Option<u64>)>>);

    impl Lifecycle for Card {}
    impl Function for Card {
        fn name(&self) -> String {
            "card".into()
        }
        fn config_read(&self, offset: u16, data: &mut [u8]) {
            self.0.lock().unwrap().read(offset, data);
        }
        fn config_write(&self, offset: u16, data: &[u8]) -> Effect {
            if self.0.lock().unwrap().write(offset, data).layout {
                Effect::Layout
            } else {
                Effect::None
            }
        }
        fn bars(&self) -> Vec<Placed> {
            self.0.lock().unwrap().bars()
        }
        fn decoded(&self) -> Vec<Placed> {
            self.0.lock().unwrap().decoded()
        }
        fn bar(&self, _bar: u8) -> Arc<dyn Device> {
            Arc::new(ResetRegister)
        }
        fn bar_moved(&self, bar: u8, base: Option<u64>) {
            self.1.lock().unwrap().push((bar, base));
        }
    }

    fn card() -> Arc<Card> {
        let mut c =
            ConfigSpace::new(&Identity { vendor: 0x1234, device: 0x5678, ..Identity::default() });
        c.add_bar(0, BarKind::Io, 64).unwrap();
        c.add_bar(2, BarKind::Memory64, 0x4000).unwrap();
        Arc::new(Card(Mutex::new(c), Mutex::default()))
    }

    #[test]
    fn both_ways_lead_to_the_same_registers() {
        let root = Arc::new(Root::new());
        root.insert(3, card()).unwrap();
        assert!(root.insert(3, card()).is_err() && root.insert(32, card()).is_err());
        assert_eq!(root.free_slot().unwrap(), 1);
        let (ports, ecam) = (ConfigPorts(root.clone()), Ecam(root));
        let mut b = [0; 4];
        ecam.read(3 << 15, &mut b);
        assert_eq!(b, [0x34, 0x12, 0x78, 0x56]);
        ports.write(0, &(0x8000_0000u32 | 3 << 11).to_le_bytes());
        let mut h = [0; 2];
        ports.read(6, &mut h);
        assert_eq!(h, [0x78, 0x56]);
        ecam.read(1 << 20, &mut b);
        assert_eq!(b, [0xff; 4]);
        ports.write(0, &(0x8000_0000u32 | 4 << 11).to_le_bytes());
        ports.read(4, &mut b);
        assert_eq!(b, [0xff; 4]);
        assert_eq!(ports.write(1, &[6]), Effect::Reset);
    }

    #[test]
    fn bars_follow_the_guest() {
        let root = Arc::new(Root::new());
        let c = card();
        root.insert(1, c.clone()).unwrap();
        let buses = Buses::default();
        root.assign(&buses, 1 << 32).unwrap();
        assert_eq!(buses.ports.layout(), [(0xc000, 64, "card BAR 0".into())]);
        assert_eq!(buses.mmio.layout()[0].0, 1 << 32);
        let ecam = Ecam(root.clone());
        let at = 1 << 15 | 0x18;
        assert_eq!(ecam.write(at, &0xc000_0000u64.to_le_bytes()), Effect::Layout);
        root.apply_layout(&buses);
        assert_eq!(buses.mmio.layout()[0].0, 0xc000_0000);
        assert_eq!(c.1.lock().unwrap()[2..], [(2, None), (2, Some(0xc000_0000))]);
        // Upon something else: nowhere. And back.
        buses.mmio.insert("ioapic", 0xfec0_0000, 0x1000, Arc::new(ResetRegister)).unwrap();
        ecam.write(at, &0xfec0_0000u64.to_le_bytes());
        root.apply_layout(&buses);
        assert_eq!(buses.mmio.layout().len(), 1);
        ecam.write(at, &0xc000_0000u64.to_le_bytes());
        root.apply_layout(&buses);
        assert_eq!(buses.mmio.layout().len(), 2);
    }
}
