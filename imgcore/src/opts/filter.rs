//! Filters below an image: `blkdebug` injects errors and pretends limits, `throttle` slows down.
//!
//! Names and options are QEMU's (`qapi/block-core.json`, `docs/devel/blkdebug.rst`). `blkdebug:CONFIG:IMAGE` is a file
//! name; everything else is given by `json:` names or `--image-opts`.
//!
//! Events of blkdebug are those that a file sees: `read_aio`, `write_aio`, `flush_to_os`, `flush_to_disk`, `pwritev`,
//! `pwritev_zero`, `none`. The others name places inside QEMU's own drivers, which are not here; an error at a certain
//! table is asked for by `event=none` with `iotype` and `sector`.

use serde_json::{Map, Value};

use super::OptError;
use super::tree::{Flat, Scalar};
use super::value;

/// Rules that one image may have.
const MAX_RULES: usize = 1000;

/// What a node lies on, as names show it.
#[derive(Clone, Debug, PartialEq)]
pub enum Shown {
    /// A name that says all.
    Plain(String),
    /// A driver and its options.
    Tree(Value),
}

impl Shown {
    /// As part of another one's description; `driver` is that of a plain name.
    pub fn tree(self, driver: &str) -> Value {
        match self {
            Shown::Tree(tree) => tree,
            Shown::Plain(name) => {
                let pairs = [("driver", driver), ("filename", &name)];
                pairs
                    .into_iter()
                    .map(|(k, v)| (k.to_owned(), Value::from(v)))
                    .collect::<Map<_, _>>()
                    .into()
            }
        }
    }

    /// As a file name.
    pub fn name(self) -> String {
        match self {
            Shown::Plain(name) => name,
            Shown::Tree(tree) => format!("json:{tree}"),
        }
    }
}

/// An option as it was given.
pub fn given(value: &Scalar) -> Value {
    match value {
        Scalar::Null => Value::Null,
        Scalar::Bool(b) => (*b).into(),
        Scalar::Number(n) => n.parse::<i64>().map_or_else(|_| n.clone().into(), Value::from),
        Scalar::Text(t) => t.clone().into(),
    }
}

/// A filter between an image and its file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Injects errors.
    BlkDebug(BlkDebug),
    /// Slows down; the limits are those of a `throttle-group` object.
    Throttle {
        /// Its identifier.
        group: String,
    },
}

/// What a request does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoType {
    /// Reads bytes.
    Read,
    /// Writes bytes.
    Write,
    /// Makes a range read as zeroes.
    WriteZeroes,
    /// Gives a range back.
    Discard,
    /// Brings everything to disk.
    Flush,
    /// Asks what a range is made of.
    BlockStatus,
}

/// When a rule is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// At every request.
    None,
    /// At reads.
    Read,
    /// At writes.
    Write,
    /// At requests for zeroes.
    Zero,
    /// At flushes.
    Flush,
}

/// An error to be injected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inject {
    /// When.
    pub event: Event,
    /// In this state only; 0: in every one.
    pub state: u32,
    /// At this kind of request only.
    pub io: Option<IoType>,
    /// The error; 0 for none (with `once`, one request is let pass).
    pub errno: i32,
    /// At requests that touch this sector of 512 bytes only.
    pub sector: Option<u64>,
    /// Only the first time.
    pub once: bool,
}

/// A change of state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetState {
    /// When.
    pub event: Event,
    /// In this state only; 0: in every one.
    pub state: u32,
    /// The state that follows.
    pub new_state: u32,
}

/// The options of blkdebug.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlkDebug {
    /// A file with more rules.
    pub config: Option<String>,
    /// Errors, in order.
    pub inject: Vec<Inject>,
    /// Changes of state, in order.
    pub set_state: Vec<SetState>,
    /// Requests are multiples of this many bytes.
    pub align: Option<u32>,
    /// The longest read and write.
    pub max_transfer: Option<u32>,
    /// The longest request for zeroes.
    pub max_write_zero: Option<u32>,
    /// The longest discard.
    pub max_discard: Option<u32>,
    /// What zeroes and discards had better be multiples of.
    pub opt_discard: Option<u32>,
    /// The options as they were given, for the name.
    pub shown: Vec<(String, Scalar)>,
}

impl Filter {
    /// Whether there is such a filter here.
    pub fn is_driver(driver: &str) -> bool {
        matches!(driver, "blkdebug" | "throttle")
    }

    /// What the filter calls the node below it.
    pub fn child(driver: &str) -> &'static str {
        if driver == "blkdebug" { "image" } else { "file" }
    }

    /// From the options of its driver. `None`: no such filter here.
    pub fn from_options(
        driver: &str,
        options: &[(String, Scalar)],
    ) -> Result<Option<Self>, OptError> {
        let mut flat = Flat::default();
        for (key, value) in options {
            flat.set(key, value.clone());
        }
        Ok(Some(match driver {
            "throttle" => {
                let group = flat.take_text("throttle-group");
                let group =
                    group.ok_or_else(|| OptError::new("Please specify a throttle group"))?;
                refuse_rest(driver, &flat)?;
                Filter::Throttle { group }
            }
            "blkdebug" => {
                let mut debug = BlkDebug { shown: options.to_vec(), ..BlkDebug::default() };
                debug.config = flat.take_text("config");
                debug.take_limits(&mut flat)?;
                debug.take_rules(&mut flat)?;
                refuse_rest(driver, &flat)?;
                Filter::BlkDebug(debug)
            }
            _ => return Ok(None),
        }))
    }

    /// From `blkdebug:CONFIG:IMAGE`: the filter, and the name of the image.
    pub fn parse(name: &str) -> Result<Option<(Self, &str)>, OptError> {
        let Some(rest) = name.strip_prefix("blkdebug:") else { return Ok(None) };
        let (config, image) = rest
            .split_once(':')
            .ok_or_else(|| OptError::new("blkdebug requires both config file and image path"))?;
        let config = Some(config.to_owned()).filter(|c| !c.is_empty());
        Ok(Some((Filter::BlkDebug(BlkDebug { config, ..BlkDebug::default() }), image)))
    }

    /// QEMU's name of it.
    pub fn driver(&self) -> &'static str {
        match self {
            Filter::BlkDebug(_) => "blkdebug",
            Filter::Throttle { .. } => "throttle",
        }
    }

    /// How it is shown over what lies below it.
    pub fn shown(&self, below: Shown) -> Shown {
        let mut tree = Map::new();
        tree.insert("driver".to_owned(), self.driver().into());
        match (self, below) {
            (Filter::Throttle { group }, below) => {
                tree.insert("throttle-group".to_owned(), group.clone().into());
                tree.insert("file".to_owned(), below.tree("file"));
            }
            (Filter::BlkDebug(debug), Shown::Plain(image))
                if debug.shown.iter().all(|(key, _)| key == "config") =>
            {
                let config = debug.config.as_deref().unwrap_or_default();
                return Shown::Plain(format!("blkdebug:{config}:{image}"));
            }
            (Filter::BlkDebug(debug), below) => {
                tree.extend(debug.shown.iter().map(|(k, v)| (k.clone(), given(v))));
                tree.insert("image".to_owned(), below.tree("file"));
            }
        }
        Shown::Tree(tree.into())
    }
}

impl BlkDebug {
    fn take_limits(&mut self, flat: &mut Flat) -> Result<(), OptError> {
        let mut take = |name: &str| -> Result<Option<u32>, OptError> {
            let Some(text) = flat.take_text(name) else { return Ok(None) };
            let n = value::size(name, &text)?;
            let fits = u32::try_from(n).ok().filter(|n| i32::try_from(*n).is_ok());
            fits.map(Some)
                .ok_or_else(|| OptError::new(format!("Cannot meet constraints with {name} {n}")))
        };
        let unmet = |name: &str, n: u32| {
            Err(OptError::new(format!("Cannot meet constraints with {name} {n}")))
        };
        self.align = take("align")?.filter(|n| *n != 0);
        if let Some(n) = self.align.filter(|n| !n.is_power_of_two()) {
            return unmet("align", n);
        }
        let unit = self.align.unwrap_or(1).max(512);
        self.max_transfer = take("max-transfer")?.filter(|n| *n != 0);
        self.max_write_zero = take("max-write-zero")?.filter(|n| *n != 0);
        self.max_discard = take("max-discard")?.filter(|n| *n != 0);
        let opt_write_zero = take("opt-write-zero")?.filter(|n| *n != 0);
        self.opt_discard = take("opt-discard")?.filter(|n| *n != 0).max(opt_write_zero);
        for (name, limit) in [
            ("max-transfer", self.max_transfer),
            ("opt-write-zero", opt_write_zero),
            ("max-write-zero", self.max_write_zero),
            ("opt-discard", self.opt_discard),
            ("max-discard", self.max_discard),
        ] {
            if let Some(n) = limit.filter(|n| n % unit != 0) {
                return unmet(name, n);
            }
        }
        Ok(())
    }

    /// Takes `inject-error.N.*` and `set-state.N.*`, or those of a configuration file.
    pub fn take_rules(&mut self, flat: &mut Flat) -> Result<(), OptError> {
        for kind in ["inject-error", "set-state"] {
            let mut rules = flat.take_below(kind);
            for n in 0.. {
                if rules.is_empty() {
                    break;
                }
                if n > MAX_RULES {
                    return Err(OptError::new(format!("blkdebug takes at most {MAX_RULES} rules")));
                }
                let mut rule = rules.take_below(&n.to_string());
                if rule.is_empty() {
                    let key = rules.iter().next().map_or("", |(k, _)| k);
                    return Err(OptError::new(format!("Invalid parameter '{kind}.{key}'")));
                }
                self.add_rule(kind, &mut rule)?;
            }
        }
        Ok(())
    }

    fn add_rule(&mut self, kind: &str, rule: &mut Flat) -> Result<(), OptError> {
        let event =
            rule.take_text("event").ok_or_else(|| OptError::new("Missing event name for rule"))?;
        let event = event_of(&event)?;
        let state = number(rule, "state")?.unwrap_or(0);
        if kind == "set-state" {
            let new_state = number(rule, "new_state")?.unwrap_or(0);
            self.set_state.push(SetState { event, state, new_state });
        } else {
            let io = rule.take_text("iotype").map(|t| io_of(&t)).transpose()?;
            let errno = number(rule, "errno")?.map_or(Ok(libc::EIO), |n| {
                i32::try_from(n)
                    .ok()
                    .filter(|n| *n < 4096)
                    .ok_or_else(|| OptError::new("errno is out of range"))
            })?;
            let sector = match rule.take_text("sector").as_deref() {
                None | Some("-1") => None,
                Some(text) => Some(value::number("sector", text)?),
            };
            let once = flag(rule, "once")?;
            // Errors come at once anyway: nothing is put off here.
            flag(rule, "immediately")?;
            self.inject.push(Inject { event, state, io, errno, sector, once });
        }
        match rule.iter().next() {
            Some((key, _)) => Err(OptError::new(format!("Invalid parameter '{key}'"))),
            None => Ok(()),
        }
    }

    /// Adds the rules of a configuration file: sections `[inject-error]` and `[set-state]` with lines `key = "value"`.
    pub fn add_config(&mut self, text: &str) -> Result<(), OptError> {
        let mut section: Option<(&str, Flat)> = None;
        let bad = |n: usize| {
            OptError::new(format!("Could not parse blkdebug config file: line {}", n + 1))
        };
        for (n, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                let kind = match name.split_whitespace().next() {
                    Some("inject-error") => "inject-error",
                    Some("set-state") => "set-state",
                    _ => return Err(OptError::new(format!("There is no option group '{name}'"))),
                };
                self.end_section(section.replace((kind, Flat::default())))?;
                continue;
            }
            let (key, value) = line.split_once('=').ok_or_else(|| bad(n))?;
            let value = value.trim().strip_prefix('"').and_then(|v| v.strip_suffix('"'));
            let (_, rule) = section.as_mut().ok_or_else(|| bad(n))?;
            rule.set(key.trim(), Scalar::Text(value.ok_or_else(|| bad(n))?.to_owned()));
        }
        self.end_section(section)
    }

    fn end_section(&mut self, section: Option<(&str, Flat)>) -> Result<(), OptError> {
        if self.inject.len() + self.set_state.len() > MAX_RULES {
            return Err(OptError::new(format!("blkdebug takes at most {MAX_RULES} rules")));
        }
        section.map_or(Ok(()), |(kind, mut rule)| self.add_rule(kind, &mut rule))
    }
}

fn flag(rule: &mut Flat, name: &str) -> Result<bool, OptError> {
    rule.take_text(name).map_or(Ok(false), |t| value::boolean(name, &t))
}

fn number(rule: &mut Flat, name: &str) -> Result<Option<u32>, OptError> {
    let Some(text) = rule.take_text(name) else { return Ok(None) };
    let n = value::number(name, &text)?;
    u32::try_from(n).map(Some).map_err(|_| OptError::new(format!("{name} is out of range")))
}

fn event_of(text: &str) -> Result<Event, OptError> {
    Ok(match text {
        "none" => Event::None,
        "read_aio" => Event::Read,
        "write_aio" | "pwritev" => Event::Write,
        "pwritev_zero" => Event::Zero,
        "flush_to_os" | "flush_to_disk" => Event::Flush,
        _ if OTHER_EVENTS.contains(&text) => {
            return Err(OptError::new(format!("the blkdebug event '{text}' is not supported"))
                .hint("it is a place inside QEMU's drivers; event=none with iotype= and sector= names a request"));
        }
        _ => return Err(OptError::new(format!("invalid parameter value: {text}"))),
    })
}

/// `BlkdebugEvent` of QEMU, without those above.
const OTHER_EVENTS: &[&str] = &[
    "l1_update",
    "l1_grow_alloc_table",
    "l1_grow_write_table",
    "l1_grow_activate_table",
    "l2_load",
    "l2_update",
    "l2_update_compressed",
    "l2_alloc_cow_read",
    "l2_alloc_write",
    "read_backing_aio",
    "read_compressed",
    "write_compressed",
    "vmstate_load",
    "vmstate_save",
    "cow_read",
    "cow_write",
    "reftable_load",
    "reftable_grow",
    "reftable_update",
    "refblock_load",
    "refblock_update",
    "refblock_update_part",
    "refblock_alloc",
    "refblock_alloc_hookup",
    "refblock_alloc_write",
    "refblock_alloc_write_blocks",
    "refblock_alloc_write_table",
    "refblock_alloc_switch_table",
    "cluster_alloc",
    "cluster_alloc_bytes",
    "cluster_free",
    "pwritev_rmw_head",
    "pwritev_rmw_after_head",
    "pwritev_rmw_tail",
    "pwritev_rmw_after_tail",
    "pwritev_done",
    "empty_image_prepare",
    "l1_shrink_write_table",
    "l1_shrink_free_l2_clusters",
    "cor_write",
    "cluster_alloc_space",
];

fn io_of(text: &str) -> Result<IoType, OptError> {
    Ok(match text {
        "read" => IoType::Read,
        "write" => IoType::Write,
        "write-zeroes" => IoType::WriteZeroes,
        "discard" => IoType::Discard,
        "flush" => IoType::Flush,
        "block-status" => IoType::BlockStatus,
        _ => return Err(OptError::new(format!("invalid parameter value: {text}"))),
    })
}

fn refuse_rest(driver: &str, flat: &Flat) -> Result<(), OptError> {
    match flat.iter().next() {
        Some((key, _)) => Err(OptError::new(format!(
            "Block protocol '{driver}' doesn't support the option '{key}'"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn debug(pairs: &[(&str, &str)]) -> Result<BlkDebug, OptError> {
        let all: Vec<_> =
            pairs.iter().map(|(k, v)| ((*k).to_owned(), Scalar::Text((*v).to_owned()))).collect();
        match Filter::from_options("blkdebug", &all)? {
            Some(Filter::BlkDebug(debug)) => Ok(debug),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rules() {
        let d = debug(&[
            ("inject-error.0.event", "read_aio"),
            ("inject-error.0.errno", "28"),
            ("inject-error.0.once", "on"),
            ("inject-error.1.event", "none"),
            ("inject-error.1.iotype", "flush"),
            ("inject-error.1.sector", "-1"),
            ("set-state.0.event", "write_aio"),
            ("set-state.0.new_state", "2"),
            ("align", "4k"),
        ])
        .unwrap();
        assert_eq!(d.inject[0].errno, 28);
        assert!(d.inject[0].once && d.inject[1].sector.is_none());
        assert_eq!(d.inject[1].io, Some(IoType::Flush));
        assert_eq!((d.set_state[0].new_state, d.align), (2, Some(4096)));
        let message = |pairs: &[(&str, &str)]| debug(pairs).unwrap_err().message;
        assert_eq!(message(&[("inject-error.0.event", "foo")]), "invalid parameter value: foo");
        assert_eq!(message(&[("inject-error.0.errno", "5")]), "Missing event name for rule");
        assert_eq!(message(&[("align", "3")]), "Cannot meet constraints with align 3");
        assert_eq!(
            message(&[("max-transfer", "100")]),
            "Cannot meet constraints with max-transfer 100"
        );
        assert!(message(&[("inject-error.0.event", "l2_load")]).contains("not supported"));
        assert!(message(&[("inject-error.3.event", "none")]).contains("inject-error.3.event"));
        assert!(message(&[("foo", "1")]).contains("doesn't support the option 'foo'"));
    }

    #[test]
    fn configuration_files() {
        let mut d = BlkDebug::default();
        d.add_config("# text\n[inject-error]\nevent = \"read_aio\"\nonce = \"on\"\n\n[set-state]\nevent=\"none\"\n").unwrap();
        assert_eq!((d.inject.len(), d.set_state.len()), (1, 1));
        for bad in [
            "x",
            "event=\"none\"",
            "[foo]",
            "[inject-error]\nevent=none",
            "[inject-error]\nerrno=\"1\"",
        ] {
            assert!(BlkDebug::default().add_config(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names() {
        let (filter, image) = Filter::parse("blkdebug::a:b").unwrap().unwrap();
        assert_eq!(image, "a:b");
        assert_eq!(filter.shown(Shown::Plain("x".into())), Shown::Plain("blkdebug::x".into()));
        let all = [("align".to_owned(), Scalar::Text("4k".into()))];
        let filter = Filter::from_options("blkdebug", &all).unwrap().unwrap();
        assert_eq!(
            filter.shown(Shown::Plain("x".into())).name(),
            "json:{\"align\":\"4k\",\"driver\":\"blkdebug\",\"image\":{\"driver\":\"file\",\"filename\":\"x\"}}"
        );
    }
}
