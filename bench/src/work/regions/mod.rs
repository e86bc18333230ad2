//! Several regions, all on this machine.
//!
//! | file | measures |
//! |---|---|
//! | `latency` | acked here to delivered and readable there |
//! | `catch_up` | how fast a region that was cut off gets what it missed, and what it costs the others |
//! | `scale` | what each further region costs |
//! | `writers` | nothing; one publisher in each region |

pub(super) mod catch_up;
pub(super) mod latency;
pub(super) mod scale;
mod writers;

use crate::cli::Setting;
use crate::report::Report;

/// A report without figures.
fn report(setting: &Setting, command: &str, work: String) -> Report {
    Report {
        command: format!("anabranch bench {command}"),
        work,
        goals: Vec::new(),
        limits: Vec::new(),
        latencies: Vec::new(),
        figures: Vec::new(),
        quick: setting.quick,
    }
}
