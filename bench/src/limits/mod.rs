//! What the machine does without a broker, measured in the same run.

pub(crate) mod disk;
pub(crate) mod loopback;
