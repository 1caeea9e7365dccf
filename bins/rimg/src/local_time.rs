//! A moment in the user's time zone.
#![allow(unsafe_code)]

/// `2026-11-21 04:14:28`, by the time zone of the process.
pub fn format(seconds: u32) -> String {
    let time = libc::time_t::from(seconds);
    // SAFETY: `tm` is a struct of integers and a pointer to a static name; all zeroes are valid.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live values of the right types, and the result is not kept.
    let done = unsafe { libc::localtime_r(&raw const time, &raw mut tm) };
    if done.is_null() {
        return seconds.to_string();
    }
    format!(
        "{:04}-{:02}-{:02} {:02}:{:02}:{:02}",
        i64::from(tm.tm_year) + 1900,
        tm.tm_mon + 1,
        tm.tm_mday,
        tm.tm_hour,
        tm.tm_min,
        tm.tm_sec
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn shape() {
        let text = super::format(1_795_234_468);
        assert_eq!(text.len(), 19);
        assert!(text.starts_with("2026-11-2"), "{text}");
    }
}
