//! What can be typed while several regions run: one order a line.

use std::io::BufRead;
use std::time::Duration;

use tokio::sync::mpsc;

use super::names::{Between, Names, parse_delay};

/// What somebody wants to happen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    /// Nothing gets over these links any more.
    Cut(Between),
    /// They carry again.
    Heal(Between),
    /// They take so long from now on.
    Delay(Between, Duration),
    /// Show all links.
    Links,
    /// Kill the broker of a region, as `kill -9` does.
    Kill(usize),
    /// Start it again.
    Start(usize),
    /// Show what can be typed.
    Help,
    /// End everything.
    Quit,
}

/// What `help` shows.
pub(super) const HELP: &str = "\
cut r3 | r1-r2 | all          nothing gets over these links any more
heal r3 | r1-r2 | all         they carry again; alone, all of them
delay r1-r2 | r3 | all 200ms  how long every byte takes, in each direction
links                         how all links are
kill r3                       kills a broker, as kill -9 does
start r3                      starts it again
quit                          ends everything; so does Ctrl-C";

/// Reads a line; an empty one is no order.
pub(super) fn parse(line: &str, names: &Names) -> Result<Option<Order>, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let order = match words.as_slice() {
        [] => return Ok(None),
        ["cut", between] => Order::Cut(names.between(between)?),
        ["heal"] => Order::Heal(Between::All),
        ["heal", between] => Order::Heal(names.between(between)?),
        ["delay", delay] => Order::Delay(Between::All, parse_delay(delay)?),
        ["delay", between, delay] => Order::Delay(names.between(between)?, parse_delay(delay)?),
        ["links"] => Order::Links,
        ["kill", region] => Order::Kill(names.region(region)?),
        ["start", region] => Order::Start(names.region(region)?),
        ["help"] => Order::Help,
        ["quit"] => Order::Quit,
        _ => return Err(format!("{:?} is no order; help shows all", line.trim())),
    };
    Ok(Some(order))
}

/// Lines that wait to be read: a script may write them faster than they are done.
const LINES_AHEAD: usize = 64;

/// Longer lines are no orders.
const LONGEST_LINE: u64 = 1024;

/// The lines of standard input. They end with it.
///
/// A thread of its own reads them, since reading standard input cannot be interrupted and would
/// hold up the end of the runtime.
pub(super) fn lines() -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel(LINES_AHEAD);
    std::thread::spawn(move || {
        let mut input = std::io::stdin().lock();
        loop {
            let mut line = Vec::new();
            let mut bounded = std::io::Read::take(&mut input, LONGEST_LINE);
            match bounded.read_until(b'\n', &mut line) {
                Ok(1..) => (),
                Ok(0) | Err(_) => return,
            }
            let line = String::from_utf8_lossy(&line).into_owned();
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_words_on_a_line() {
        let names = Names::numbered(3);
        let read = |line| parse(line, &names).unwrap();
        assert_eq!(read("  \n"), None);
        assert_eq!(read("cut r3\n"), Some(Order::Cut(Between::Region(2))));
        assert_eq!(read("heal r2-r1"), Some(Order::Heal(Between::Pair(0, 1))));
        assert_eq!(read("heal"), Some(Order::Heal(Between::All)));
        let delay = Duration::from_millis(200);
        let slower = Order::Delay(Between::Pair(0, 1), delay);
        assert_eq!(read("delay r1-r2 200ms"), Some(slower));
        assert_eq!(read("delay 200ms"), Some(Order::Delay(Between::All, delay)));
        assert_eq!(read("kill r1"), Some(Order::Kill(0)));
        assert_eq!(read("quit"), Some(Order::Quit));
    }

    #[test]
    fn what_is_no_order_is_refused_with_what_would_be() {
        let names = Names::numbered(2);
        for (line, hint) in [
            ("cut", "help"),
            ("cut r3", "r1, r2"),
            ("delay r1 fast", "40ms"),
            ("kill r1-r2", "r1, r2"),
            ("cut r1 and r2", "help"),
        ] {
            let error = parse(line, &names).unwrap_err();
            assert!(error.contains(hint), "{line}: {error}");
        }
    }

    #[test]
    fn help_names_every_order() {
        for word in ["cut", "heal", "delay", "links", "kill", "start", "quit"] {
            assert!(HELP.lines().any(|line| line.starts_with(word)), "{word}");
        }
    }
}
