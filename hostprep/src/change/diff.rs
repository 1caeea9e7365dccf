//! A small unified diff: for configuration files, so quadratic time over what differs is fine.

/// Lines beyond which the middle is shown as replaced whole, to bound the table.
const LIMIT: usize = 2000;

/// The difference of two texts with three lines of context; empty when equal.
pub fn unified(path: &str, before: Option<&str>, after: Option<&str>) -> String {
    let old: Vec<&str> = before.unwrap_or_default().lines().collect();
    let new: Vec<&str> = after.unwrap_or_default().lines().collect();
    if before == after {
        return String::new();
    }
    let name = |text: Option<&str>, side: &str| {
        if text.is_some() { format!("{side}{path}") } else { "/dev/null".to_owned() }
    };
    let mut out = format!("--- {}\n+++ {}\n", name(before, "a"), name(after, "b"));
    let start = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let room = old.len().min(new.len()) - start;
    let end = old.iter().rev().zip(new.iter().rev()).take(room).take_while(|(a, b)| a == b).count();
    let (old_mid, new_mid) = (&old[start..old.len() - end], &new[start..new.len() - end]);
    let from = start.saturating_sub(3);
    let tail = end.min(3);
    let old_shown = old.len() - end + tail - from;
    let new_shown = new.len() - end + tail - from;
    let first = |shown: usize| if shown == 0 { 0 } else { from + 1 };
    out.push_str(&format!(
        "@@ -{},{old_shown} +{},{new_shown} @@\n",
        first(old_shown),
        first(new_shown)
    ));
    let mut line = |mark: char, text: &str| {
        out.push(mark);
        out.push_str(text);
        out.push('\n');
    };
    old[from..start].iter().for_each(|text| line(' ', text));
    for (mark, text) in middle(old_mid, new_mid) {
        line(mark, text);
    }
    old[old.len() - end..old.len() - end + tail].iter().for_each(|text| line(' ', text));
    out
}

/// Longest common subsequence of the differing middle.
fn middle<'a>(old: &[&'a str], new: &[&'a str]) -> Vec<(char, &'a str)> {
    if old.len() > LIMIT || new.len() > LIMIT {
        return old
            .iter()
            .map(|text| ('-', *text))
            .chain(new.iter().map(|text| ('+', *text)))
            .collect();
    }
    let width = new.len() + 1;
    let mut table = vec![0_u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            table[i * width + j] = if old[i] == new[j] {
                table[(i + 1) * width + j + 1] + 1
            } else {
                table[(i + 1) * width + j].max(table[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut out = Vec::new();
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            out.push((' ', old[i]));
            i += 1;
            j += 1;
        } else if j == new.len()
            || (i < old.len() && table[(i + 1) * width + j] >= table[i * width + j + 1])
        {
            out.push(('-', old[i]));
            i += 1;
        } else {
            out.push(('+', new[j]));
            j += 1;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::unified;

    #[test]
    fn shows_what_differs() {
        let diff = unified("/etc/x", Some("a\nb\nc\nd\ne\n"), Some("a\nb\nX\nd\ne\n"));
        assert_eq!(diff, "--- a/etc/x\n+++ b/etc/x\n@@ -1,5 +1,5 @@\n a\n b\n-c\n+X\n d\n e\n");
        let diff = unified("/etc/x", None, Some("new\n"));
        assert_eq!(diff, "--- /dev/null\n+++ b/etc/x\n@@ -0,0 +1,1 @@\n+new\n");
        assert_eq!(unified("/x", Some("a"), Some("a")), "");
    }
}
