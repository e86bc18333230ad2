//! In which regions a write has to be before it is acknowledged.

use std::collections::BTreeSet;
use std::fmt;

use crate::id::RegionName;

/// Regions that have to hold a frame. The one that wrote it counts.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Quorum {
    /// So many, whichever.
    Count(u8),
    /// All of these.
    Named(BTreeSet<RegionName>),
}

impl Quorum {
    /// Reads `regions:N` or `region:NAME,NAME…`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(count) = text.strip_prefix("regions:") {
            let count = count.parse().ok().filter(|count| *count > 0)?;
            return Some(Self::Count(count));
        }
        let names = text.strip_prefix("region:")?.split(',');
        let names: Option<BTreeSet<_>> = names.map(|name| RegionName::parse(name).ok()).collect();
        names.map(Self::Named)
    }

    /// Whether it is enough that these hold it.
    #[must_use]
    pub fn is_met(&self, regions: &BTreeSet<&RegionName>) -> bool {
        match self {
            Self::Count(count) => regions.len() >= usize::from(*count),
            Self::Named(names) => names.iter().all(|name| regions.contains(name)),
        }
    }
}

impl fmt::Display for Quorum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "regions:{count}"),
            Self::Named(names) => {
                f.write_str("region:")?;
                for (number, name) in names.iter().enumerate() {
                    let comma = if number == 0 { "" } else { "," };
                    write!(f, "{comma}{name}")?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_reads_back_and_nothing_else_is_read() {
        for text in ["regions:1", "regions:7", "region:eu", "region:ap,eu,us-1"] {
            assert_eq!(Quorum::parse(text).unwrap().to_string(), text);
        }
        for text in [
            "",
            "disk",
            "regions:",
            "regions:0",
            "regions:256",
            "regions:x",
            "region:",
            "region:EU",
            "region:a,,b",
        ] {
            assert_eq!(Quorum::parse(text), None, "{text}");
        }
    }

    #[test]
    fn it_is_met_by_enough_regions_or_by_those_named() {
        let names = ["a", "b", "c"].map(|name| RegionName::parse(name).unwrap());
        let [a, b, c] = &names;
        let met = |text: &str, held: &[&RegionName]| {
            Quorum::parse(text)
                .unwrap()
                .is_met(&held.iter().copied().collect())
        };
        assert!(met("regions:2", &[a, c]) && !met("regions:3", &[a, c]));
        assert!(met("region:a,c", &[a, b, c]) && !met("region:a,c", &[a, b]));
    }
}
