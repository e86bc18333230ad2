//! The pure heart of Anabranch: no I/O, no clock, no randomness, no threads.
//!
//! Time, seeds and bytes come in as arguments and leave as values, so that everything
//! here can be run a million times a second under a simulator.
//!
//! | module | holds |
//! |---|---|
//! | [`id`] | newtypes for every id, position and size that could be swapped |
//! | [`clock`] | hybrid timestamps and the clock that hands them out |
//! | [`vector`] | version vectors, and the tokens that clients carry |
//! | [`wire`] | reading and writing numbers |
//! | [`cursor`] | what a subscription was given, and what is left of that in another region |
//! | [`batch`] | Kafka's record batch v2: checked once, then passed on as bytes |
//! | [`frame`] | the unit of append and replication: header, parts, hash chain |
//! | [`gap`] | what is left of frames of which nothing is left |
//! | [`stream`] | what a stream is: merge mode, partitions, retention |
//! | [`definition`] | how what several regions say of one stream becomes one definition |
//! | [`residency`] | which regions may hold what of the payload |
//! | [`partitioner`] | which partition a key belongs to |
//! | [`producer`] | idempotent producers: a retried publish counts once |
//! | [`quorum`] | in which regions a write has to be before it is acknowledged |
//! | [`recall`] | what a broker may have forgotten of what it reported |
//! | [`sequencer`] | publishes in, one frame out: the only place that assigns sequences |
//! | [`exchange`] | whom to ask for which frames |
//! | [`holding`] | frames that came before what they follow |
//! | [`stability`] | what every member has applied, and up to when nothing more is stamped |
//! | [`mesh`] | the brokers of all regions as one of them knows them |
//! | [`members`] | which brokers belong to the cluster, as the log says |
//! | [`entry`] | whether a broker may write, who becomes a member, who may be linked |
//! | [`audit`] | finding the row in which two brokers differ |
//! | [`lag`] | how far somebody is behind, in time and bytes |
//! | [`total`] | one order of all records, the same in every region |
//! | [`lww`] | rows where the last writer wins |
//! | [`document`] | rows that are JSON documents, whose fields merge |
//! | [`limits`] | every limit, with its reason |

#![cfg_attr(test, allow(clippy::cast_possible_truncation))]

pub mod audit;
pub mod batch;
pub mod clock;
pub mod cursor;
pub mod definition;
pub mod document;
pub mod entry;
pub mod exchange;
pub mod frame;
pub mod gap;
pub mod holding;
pub mod id;
pub mod lag;
pub mod limits;
pub mod lww;
pub mod members;
pub mod mesh;
pub mod partitioner;
pub mod producer;
pub mod quorum;
pub mod recall;
pub mod residency;
pub mod sequencer;
pub mod stability;
pub mod stream;
pub mod total;
pub mod vector;
pub mod wire;
