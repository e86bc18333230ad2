//! Dates, clocks and the daylight saving time of 2013, in minutes since 1970.
//!
//! The data set says when in local time; a stream is ordered in universal time. A time zone
//! database would be a large dependency for one year and one country's rule.

/// Minutes since 1970-01-01T00:00Z.
pub(super) type Minutes = i64;

/// Minutes in a day.
pub(super) const DAY: Minutes = 24 * 60;

/// Days from 1970-01-01 to a date. Howard Hinnant, "chrono-compatible low-level date algorithms".
pub(super) const fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// The reverse of [`days_from_civil`]: year, month, day.
pub(super) const fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day_of_year - (153 * shifted + 2) / 5 + 1)
}

/// `2013-01-01T10:17:00Z`.
pub(super) fn rfc3339(at: Minutes) -> String {
    let (year, month, day) = civil_from_days(at.div_euclid(DAY));
    let minute = at.rem_euclid(DAY);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:00Z",
        minute / 60,
        minute % 60
    )
}

/// A place's clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Zone {
    /// Minutes that standard time is ahead of universal time; negative in America.
    pub(super) standard: Minutes,
    /// Whether the clocks go forward in summer.
    pub(super) daylight_saving: bool,
}

/// The clocks of New York.
pub(super) const NEW_YORK: Zone = Zone {
    standard: -5 * 60,
    daylight_saving: true,
};

/// The clocks of Puerto Rico and the Virgin Islands.
pub(super) const ATLANTIC: Zone = Zone {
    standard: -4 * 60,
    daylight_saving: false,
};

/// In 2013, clocks went forward at two in the morning of 10 March, standard time.
const FORWARD: Minutes = days_from_civil(2013, 3, 10) * DAY + 2 * 60;
/// And back at two in the morning of 3 November, which is one o'clock standard time.
const BACK: Minutes = days_from_civil(2013, 11, 3) * DAY + 60;

impl Zone {
    /// Minutes that the clocks are ahead of universal time at a moment.
    pub(super) fn offset(self, at: Minutes) -> Minutes {
        let standard_clock = at + self.standard;
        let summer = (FORWARD..BACK).contains(&standard_clock);
        self.standard
            + if self.daylight_saving && summer {
                60
            } else {
                0
            }
    }

    /// What the clocks show at a moment: minutes since midnight.
    pub(super) fn clock(self, at: Minutes) -> Minutes {
        (at + self.offset(at)).rem_euclid(DAY)
    }

    /// The first moment after `start` at which the clocks show `clock`.
    ///
    /// The clocks may change on the way, and one flight landed at an hour that was skipped; its
    /// clock had not been changed.
    pub(super) fn next(self, start: Minutes, clock: Minutes) -> Minutes {
        let at_offset = |offset: Minutes| start + (clock - start - offset).rem_euclid(DAY);
        let unchanged = at_offset(self.offset(start));
        let changed = at_offset(self.offset(start + DAY / 2));
        if self.clock(unchanged) != clock && self.clock(changed) == clock {
            changed
        } else {
            unchanged
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn utc(day: i64, month: i64, hour: i64, minute: i64) -> Minutes {
        days_from_civil(2013, month, day) * DAY + hour * 60 + minute
    }

    #[test]
    fn dates_read_back() {
        for days in [-719_468, -1, 0, 59, 60, 15_706, 16_071, 1_000_000] {
            let (year, month, day) = civil_from_days(days);
            assert_eq!(days_from_civil(year, month, day), days);
        }
        assert_eq!(rfc3339(utc(29, 12, 23, 59)), "2013-12-29T23:59:00Z");
        assert_eq!(days_from_civil(2013, 1, 1), 15_706);
    }

    #[test]
    fn clocks_change_at_two_in_the_morning() {
        assert_eq!(NEW_YORK.clock(utc(10, 3, 6, 59)), 60 + 59);
        assert_eq!(NEW_YORK.clock(utc(10, 3, 7, 0)), 3 * 60);
        assert_eq!(NEW_YORK.clock(utc(3, 11, 5, 59)), 60 + 59);
        assert_eq!(NEW_YORK.clock(utc(3, 11, 6, 0)), 60);
        assert_eq!(ATLANTIC.clock(utc(4, 7, 12, 0)), 8 * 60);
    }

    #[test]
    fn the_next_time_a_clock_shows_something_is_within_a_day() {
        let start = utc(1, 7, 12, 0);
        assert_eq!(NEW_YORK.next(start, 8 * 60), start);
        assert_eq!(NEW_YORK.next(start, 8 * 60 + 5), start + 5);
        assert_eq!(NEW_YORK.next(start, 7 * 60 + 59), start + DAY - 1);
        // Over the night in which the clocks go forward.
        let evening = utc(10, 3, 4, 0);
        assert_eq!(NEW_YORK.next(evening, 4 * 60), utc(10, 3, 8, 0));
        // An hour that does not exist.
        assert_eq!(NEW_YORK.next(evening, 2 * 60 + 3), utc(10, 3, 7, 3));
    }
}
