//! Lines for people on standard error, or in the file of `-D`.

use std::fs::{File, OpenOptions};
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::sys::time::TimeValLike;
use vmm::cmdline::process::Messages;

/// Where lines go, and what stands before them.
#[derive(Default)]
pub struct Voice {
    log: Option<Mutex<File>>,
    style: Messages,
    guest: Option<String>,
}

impl Voice {
    /// As the command line wants it.
    ///
    /// # Errors
    /// When the file of `-D` cannot be opened.
    pub fn new(log: Option<&Path>, style: Messages, guest: Option<String>) -> vmm::Result<Self> {
        let open = |path: &Path| {
            OpenOptions::new().create(true).append(true).open(path).map_err(|e| {
                vmm::Error::io(&e)
                    .context(format!("-D: cannot open '{}'", path.display()))
                    .hint("Choose another file, or leave -D out")
            })
        };
        Ok(Voice { log: log.map(open).transpose()?.map(Mutex::new), style, guest })
    }

    /// A line; in raw mode a line on a terminal needs its carriage return.
    pub fn say(&self, text: &str) {
        let text = format!("{}{text}", self.prefix());
        // Nobody is left to tell when the place for messages is gone.
        if let Some(log) = &self.log {
            let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
            let _ = writeln!(log, "{text}");
            return;
        }
        let end = if std::io::stderr().is_terminal() { "\r\n" } else { "\n" };
        let _ = write!(std::io::stderr(), "{text}{end}");
    }

    /// An error with what to do about it.
    pub fn fail(&self, e: &vmm::Error) {
        self.say(&format!("rkvm: {}", e.report()));
        for hint in e.hints() {
            self.say(&format!("rkvm: {hint}"));
        }
    }

    fn prefix(&self) -> String {
        let mut prefix = String::new();
        if self.style.timestamp {
            prefix.push_str(&now());
            prefix.push(' ');
        }
        if let (true, Some(name)) = (self.style.guest_name, &self.guest) {
            prefix.push_str(name);
            prefix.push(' ');
        }
        prefix
    }
}

/// The time as RFC 3339 writes it, with microseconds, in UTC.
fn now() -> String {
    let Ok(t) = nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME) else {
        return String::new();
    };
    let seconds = t.num_seconds();
    let (days, of_day) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = date(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{:06}Z",
        of_day / 3600,
        of_day / 60 % 60,
        of_day % 60,
        t.tv_nsec() / 1000
    )
}

/// The day so many days after 1970 began (proleptic Gregorian calendar).
fn date(days: i64) -> (i64, i64, i64) {
    // Years that begin in March, counted from the year 0: leap days come last.
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_their_dates() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(59), (1970, 3, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(19_782), (2024, 2, 29));
        assert_eq!(date(20_453), (2025, 12, 31));
        assert!(now().ends_with('Z') && now().len() == 27);
    }
}
