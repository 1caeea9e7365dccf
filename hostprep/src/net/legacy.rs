//! Filters of the old iptables in the kernel (`ip_tables`), which nftables does not show: Docker on hosts where
//! `iptables` still is the legacy one drops forwarded packets there.
//!
//! As in `firewall`: marked accept rules go into the chain meant for them, and only they are taken out again.

use super::firewall::mark;
use crate::change::Programs;
use crate::error::Result;

/// Program, and the file in which the kernel lists this family's tables in use.
const FAMILIES: [(&str, &str, &str); 2] = [
    ("iptables-legacy", "iptables", "/proc/net/ip_tables_names"),
    ("ip6tables-legacy", "ip6tables", "/proc/net/ip6_tables_names"),
];

/// The programs whose filter table the kernel has in use. Asking the program itself would make one.
fn in_use(programs: &Programs) -> Vec<String> {
    let families = FAMILIES.iter().filter(|(_, _, list)| {
        std::fs::read_to_string(list).is_ok_and(|text| text.lines().any(|line| line == "filter"))
    });
    let named = families.filter_map(|(legacy, plain, _)| {
        let version = |name: &str| programs.output(&[name.to_owned(), "-V".to_owned()]).ok();
        if version(legacy).is_some() {
            return Some((*legacy).to_owned());
        }
        // Before 1.8 there was only the old kind, which does not name itself.
        let nft = version(plain)?.contains("nf_tables");
        (!nft).then(|| (*plain).to_owned())
    });
    named.collect()
}

/// All rules of the filter table as the program writes them, one a line.
fn rules(programs: &Programs, program: &str) -> Result<Vec<String>> {
    let words = [program, "-w", "-S"].map(str::to_owned);
    Ok(programs.output(&words)?.lines().map(str::to_owned).collect())
}

/// Our rules among them, as the words that delete them.
fn ours(rules: &[String], bridge: &str) -> Vec<Vec<String>> {
    let mark = mark(bridge);
    let own = rules.iter().filter(|rule| {
        let mut words = rule.split(' ');
        words.any(|word| word == "--comment")
            && words.next().is_some_and(|word| word.trim_matches('"') == mark)
    });
    own.filter_map(|rule| {
        let rest = rule.strip_prefix("-A ")?;
        let words = rest.split(' ').map(|word| word.trim_matches('"').to_owned());
        Some(std::iter::once("-D".to_owned()).chain(words).collect())
    })
    .collect()
}

fn call(programs: &Programs, program: &str, words: impl IntoIterator<Item = String>) -> Result<()> {
    let command: Vec<String> =
        [program.to_owned(), "-w".to_owned()].into_iter().chain(words).collect();
    programs.run(&command)
}

/// Whether our accept rules are there.
pub fn accepted(programs: &Programs, bridge: &str) -> Result<bool> {
    for program in in_use(programs) {
        if !ours(&rules(programs, &program)?, bridge).is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Inserts accept rules where FORWARD drops by policy: into DOCKER-USER when there is one, else into FORWARD.
pub fn accept(programs: &Programs, bridge: &str) -> Result<()> {
    for program in in_use(programs) {
        let rules = rules(programs, &program)?;
        let drops = rules.iter().any(|rule| rule == "-P FORWARD DROP");
        if !drops || !ours(&rules, bridge).is_empty() {
            continue;
        }
        let user = rules.iter().any(|rule| rule == "-N DOCKER-USER");
        let chain = if user { "DOCKER-USER" } else { "FORWARD" };
        for direction in ["-i", "-o"] {
            let comment = mark(bridge);
            let words = ["-I", chain, direction, bridge, "-m", "comment", "--comment", &comment];
            call(
                programs,
                &program,
                words.iter().chain(&["-j", "ACCEPT"]).map(|w| (*w).to_owned()),
            )?;
        }
    }
    Ok(())
}

/// Takes them out again.
pub fn withdraw(programs: &Programs, bridge: &str) -> Result<()> {
    for program in in_use(programs) {
        for rule in ours(&rules(programs, &program)?, bridge) {
            call(programs, &program, rule)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_rules() {
        let rules = [
            "-P FORWARD DROP",
            "-A FORWARD -i br0 -m comment --comment \"rhostprep:br0\" -j ACCEPT",
            "-A FORWARD -i br0 -m comment --comment rhostprep:br01 -j ACCEPT",
            "-A FORWARD -i br0 -j ACCEPT",
        ]
        .map(str::to_owned);
        let found = ours(&rules, "br0");
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].join(" "),
            "-D FORWARD -i br0 -m comment --comment rhostprep:br0 -j ACCEPT"
        );
    }
}
