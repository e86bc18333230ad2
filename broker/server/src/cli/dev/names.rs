//! The regions' names, and what a person says of the links between them.

use std::time::Duration;

use anabranch_core::id::RegionName;

/// The names of the regions, in their order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Names(Vec<RegionName>);

/// Which links are meant. Regions are named by their place in [`Names`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Between {
    /// All of them.
    All,
    /// Those of one region.
    Region(usize),
    /// The one between two regions, the lower place first.
    Pair(usize, usize),
}

impl Between {
    /// Whether it means the link between these two, the lower place first.
    pub(super) fn means(self, pair: (usize, usize)) -> bool {
        match self {
            Self::All => true,
            Self::Region(region) => pair.0 == region || pair.1 == region,
            Self::Pair(a, b) => pair == (a, b),
        }
    }
}

impl Names {
    /// `r1`, `r2` and so on.
    pub(super) fn numbered(count: usize) -> Self {
        let name = |number| RegionName::parse(&format!("r{number}"));
        let names = (1..=count).map(name);
        Self(names.map(|it| it.expect("in the alphabet")).collect())
    }

    /// Names that somebody chose.
    pub(super) fn parse(texts: &[String]) -> Result<Self, String> {
        let mut names = Vec::new();
        for text in texts {
            let name = RegionName::parse(text).map_err(|error| error.to_string())?;
            if names.contains(&name) {
                return Err(format!("two regions cannot both be called {name}"));
            }
            names.push(name);
        }
        Ok(Self(names))
    }

    /// How many.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &RegionName> + Clone {
        self.0.iter()
    }

    /// Letters of the longest name.
    pub(super) fn longest(&self) -> usize {
        let lengths = self.0.iter().map(|name| name.as_str().len());
        lengths.max().unwrap_or(0)
    }

    /// The name of a region.
    pub(super) fn of(&self, region: usize) -> &str {
        self.0[region].as_str()
    }

    /// The name of the link between two regions.
    pub(super) fn of_pair(&self, (a, b): (usize, usize)) -> String {
        format!("{}-{}", self.0[a], self.0[b])
    }

    /// The region of a name.
    pub(super) fn region(&self, name: &str) -> Result<usize, String> {
        let found = self.0.iter().position(|it| it.as_str() == name);
        found.ok_or_else(|| format!("no region is called {name:?}; there are {}", self.list()))
    }

    /// The links that `r1`, `r1-r2` or `all` mean. Names may hold dashes themselves.
    pub(super) fn between(&self, text: &str) -> Result<Between, String> {
        if let Ok(region) = self.region(text) {
            return Ok(Between::Region(region));
        }
        if text == "all" {
            return Ok(Between::All);
        }
        let mut pairs = text.match_indices('-').filter_map(|(dash, _)| {
            let a = self.region(&text[..dash]).ok()?;
            let b = self.region(&text[dash + 1..]).ok()?;
            (a != b).then(|| Between::Pair(a.min(b), a.max(b)))
        });
        match (pairs.next(), pairs.next()) {
            (Some(pair), None) => Ok(pair),
            (Some(_), Some(_)) => Err(format!("{text:?} may mean two links; rename a region")),
            (None, _) => Err(format!(
                "{text:?} is neither a region, nor two with a dash between, nor all; there are {}",
                self.list()
            )),
        }
    }

    fn list(&self) -> String {
        let names: Vec<&str> = self.0.iter().map(RegionName::as_str).collect();
        names.join(", ")
    }
}

/// Brokers end a link on which they hear nothing for five seconds, and speak every second. More than
/// this would be a cut, and the way to the Moon takes 1.3 s.
const LONGEST_DELAY: Duration = Duration::from_secs(3);

/// Reads `40ms`, `2s` or `0`.
pub(super) fn parse_delay(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number = digits.parse().ok();
    let delay = match (&text[digits.len()..], number) {
        ("ms", Some(number)) => Some(Duration::from_millis(number)),
        ("s", Some(number)) => Some(Duration::from_secs(number)),
        ("", Some(0)) => Some(Duration::ZERO),
        _ => None,
    };
    delay
        .filter(|delay| *delay <= LONGEST_DELAY)
        .ok_or_else(|| format!("{text:?} is no delay; expected 40ms or 2s, at most 3s"))
}

/// Reads `40ms`, for all links, or `r1-r2=40ms`.
pub(super) fn parse_link_delay(text: &str, names: &Names) -> Result<(Between, Duration), String> {
    match text.split_once('=') {
        Some((between, delay)) => Ok((names.between(between)?, parse_delay(delay)?)),
        None => Ok((Between::All, parse_delay(text)?)),
    }
}

/// A delay as [`parse_delay`] reads it.
pub(super) fn delay_text(delay: Duration) -> String {
    format!("{}ms", delay.as_millis())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(texts: &[&str]) -> Names {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        Names::parse(&texts).unwrap()
    }

    #[test]
    fn links_are_meant_by_one_name_by_two_or_by_all() {
        let names = names(&["eu", "us-east", "asia"]);
        assert_eq!(names.between("asia"), Ok(Between::Region(2)));
        assert_eq!(names.between("us-east"), Ok(Between::Region(1)));
        assert_eq!(names.between("us-east-eu"), Ok(Between::Pair(0, 1)));
        assert_eq!(names.between("eu-us-east"), Ok(Between::Pair(0, 1)));
        assert_eq!(names.between("all"), Ok(Between::All));
        for wrong in ["", "-", "us", "eu-eu", "eu-us", "eu-mars"] {
            let error = names.between(wrong).unwrap_err();
            assert!(error.contains("eu, us-east, asia"), "{error}");
        }
    }

    #[test]
    fn a_text_that_may_mean_two_links_is_refused() {
        let names = names(&["a", "b-c", "a-b", "c"]);
        assert!(names.between("a-b-c").is_err());
        assert_eq!(names.between("b-c-a"), Ok(Between::Pair(0, 1)));
    }

    #[test]
    fn names_are_parsed_once_and_stand_once() {
        assert!(Names::parse(&["eu".to_owned(), "eu".to_owned()]).is_err());
        assert!(Names::parse(&["../x".to_owned()]).is_err());
        assert_eq!(Names::numbered(2), names(&["r1", "r2"]));
    }

    #[test]
    fn delays_have_a_unit_and_an_end() {
        let names = names(&["a", "b"]);
        let parse = |text| parse_link_delay(text, &names);
        let ms = Duration::from_millis;
        assert_eq!(parse("40ms"), Ok((Between::All, ms(40))));
        assert_eq!(parse("a-b=2s"), Ok((Between::Pair(0, 1), ms(2000))));
        assert_eq!(parse("b=0"), Ok((Between::Region(1), ms(0))));
        for wrong in [
            "40",
            "ms",
            "-1ms",
            "4s",
            "a-c=1ms",
            "a-b=",
            "18446744073709551615s",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_delay(&delay_text(ms(1500))), Ok(ms(1500)));
    }
}
