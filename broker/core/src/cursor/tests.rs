//! Texts read back; and subscribers that hop between regions are given everything once.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn origin(region: usize) -> Origin {
    Origin {
        broker: BrokerId::new(region as u64 + 1),
        epoch: Epoch::new(1),
    }
}

fn vectors() -> impl Strategy<Value = VersionVector> {
    let entry = (0usize..5, 1u64..1_000_000);
    let vector = |entries: Vec<(usize, u64)>| {
        let entries = entries.into_iter();
        entries.map(|(region, s)| (origin(region), Sequence::new(s)))
    };
    prop::collection::vec(entry, 0..6).prop_map(move |entries| vector(entries).collect())
}

fn cursors() -> impl Strategy<Value = Cursor> {
    let begun = prop::collection::btree_map(0usize..5, 1u32.., 0..3);
    let order = prop::sample::select(&[Order::Local, Order::Total][..]);
    (order, any::<u64>(), vectors(), begun).prop_map(|(order, after, seen, begun)| Cursor {
        order,
        after: match order {
            Order::Local => HybridTimestamp::ZERO,
            Order::Total => HybridTimestamp::new(after),
        },
        seen,
        begun: begun.into_iter().map(|(r, n)| (origin(r), n)).collect(),
    })
}

proptest! {
    #[test]
    fn a_cursor_reads_back_in_its_own_cluster_only(cursor in cursors()) {
        let ours = ClusterId::of("ours");
        let text = cursor.encode(ours);
        prop_assert!(text.starts_with('Y'), "{text}");
        prop_assert_eq!(Cursor::decode(&text, ours), Ok(cursor));
        prop_assert_eq!(
            Cursor::decode(&text, ClusterId::of("theirs")),
            Err(BadVector::OtherCluster)
        );
        prop_assert!(crate::vector::Token::decode(&text, ours).is_err());
    }

    #[test]
    fn a_damaged_cursor_is_refused_or_another(cursor in cursors(), at in any::<usize>(), to in any::<u8>()) {
        let ours = ClusterId::of("ours");
        let mut text = cursor.encode(ours).into_bytes();
        let at = at % text.len();
        text[at] = to;
        if let Ok(text) = String::from_utf8(text) {
            // One check byte lets one in 256 through, but never a panic.
            let _ = Cursor::decode(&text, ours);
        }
    }

    #[test]
    fn fields_that_are_none_never_panic(kind in prop::sample::select(&b"abct"[..]), fields in prop::collection::vec(any::<u8>(), 0..64)) {
        let ours = ClusterId::of("ours");
        let text = encode_text(kind, ours, &fields);
        if let Ok(cursor) = Cursor::decode(&text, ours) {
            prop_assert_eq!(cursor.encode(ours), text);
        }
    }
}

/// Cursors of versions before frames had names in them: the number was of the frame that follows in
/// the log of the broker that made it, which nobody else can know.
#[test]
fn an_old_cursor_inside_a_frame_is_refused() {
    let ours = ClusterId::of("ours");
    let seen: VersionVector = [(origin(0), Sequence::new(7))].into_iter().collect();
    for index in [1, 2, 3, 200] {
        let mut fields = Vec::new();
        put_varint(&mut fields, index);
        seen.encode(&mut fields);
        let text = encode_text(BETWEEN, ours, &fields);
        let refused = Cursor::decode(&text, ours);
        assert!(
            matches!(refused, Err(BadVector::Malformed(_))),
            "{refused:?}"
        );
    }
}

const REGIONS: usize = 3;

/// Records are in partitions by turns.
const PARTITIONS: u32 = 2;

#[derive(Clone, Debug)]
struct Frame {
    origin: Origin,
    sequence: Sequence,
    records: u32,
    context: VersionVector,
}

/// The logs of all regions, each in an order of its own.
#[derive(Default)]
struct World {
    logs: [Vec<Frame>; REGIONS],
}

impl World {
    fn vector_before(&self, region: usize, position: usize) -> VersionVector {
        let frames = self.logs[region][..position].iter();
        frames.map(|frame| (frame.origin, frame.sequence)).collect()
    }

    fn vector(&self, region: usize) -> VersionVector {
        self.vector_before(region, self.logs[region].len())
    }

    fn write(&mut self, region: usize, records: u32) {
        let context = self.vector(region);
        self.logs[region].push(Frame {
            origin: origin(region),
            sequence: context.get(origin(region)).next(),
            records,
            context,
        });
    }

    /// Takes over the next frame of another region, if it has come to this one and all that it
    /// follows is here; says whether it did.
    fn take_over(&mut self, region: usize, of: usize, through: usize) -> bool {
        let held = self.vector(region);
        let frames = self.logs[through].iter();
        let mut next = frames.filter(|f| f.origin == origin(of) && f.sequence > held.get(f.origin));
        let next = next.next().filter(|frame| held.covers(&frame.context));
        let next = next.cloned();
        let took = next.is_some();
        self.logs[region].extend(next);
        took
    }

    fn exchange_all(&mut self) {
        let pairs = || (0..REGIONS).flat_map(|a| (0..REGIONS).map(move |b| (a, b)));
        while pairs().any(|(a, b)| self.take_over(a, b, b)) {}
    }
}

/// A subscriber, as a broker has one, with what it was given.
struct Subscriber {
    region: usize,
    position: usize,
    resumed: Resumed,
    partition: Option<u32>,
    cursor: String,
    given: Vec<(Origin, Sequence, u32)>,
}

const CLUSTER: ClusterId = ClusterId::new(9);

impl Subscriber {
    fn new(partition: Option<u32>) -> Self {
        Self {
            region: 0,
            position: 0,
            resumed: Resumed::default(),
            partition,
            cursor: Cursor::default().encode(CLUSTER),
            given: Vec::new(),
        }
    }

    fn hop(&mut self, world: &World, region: usize) {
        let cursor = Cursor::decode(&self.cursor, CLUSTER).unwrap();
        let log = &world.logs[region];
        let unseen = |frame: &Frame| !cursor.seen.contains(frame.origin, frame.sequence);
        self.region = region;
        self.position = log.iter().position(unseen).unwrap_or(log.len());
        let before = world.vector_before(region, self.position);
        self.resumed = Resumed::at(&cursor, &before);
    }

    /// Is given what comes next, at most so many records.
    fn take(&mut self, world: &World, most: u32) {
        let Some(frame) = world.logs[self.region].get(self.position) else {
            return;
        };
        let mut left = most;
        let (origin, sequence) = (frame.origin, frame.sequence);
        if !self.resumed.has_seen(origin, sequence) {
            for index in self.resumed.begun(origin, sequence)..frame.records {
                if self.partition.is_some_and(|p| index % PARTITIONS != p) {
                    continue;
                }
                if left == 0 {
                    let before = world.vector_before(self.region, self.position);
                    let mut cursor = self.resumed.cursor(before);
                    cursor.begun.insert(origin, index);
                    self.cursor = cursor.encode(CLUSTER);
                    // Inside a frame it goes on with a new request, here or elsewhere.
                    return self.hop(world, self.region);
                }
                left -= 1;
                self.given.push((origin, sequence, index));
            }
        }
        self.position += 1;
        let before = world.vector_before(self.region, self.position);
        self.resumed.pass(&before);
        self.cursor = self.resumed.cursor(before).encode(CLUSTER);
    }

    fn check(&self, world: &World) {
        let unique: BTreeSet<_> = self.given.iter().collect();
        assert_eq!(
            unique.len(),
            self.given.len(),
            "given twice: {:?}",
            self.given
        );
        let all = world.logs[0].iter().flat_map(|frame| {
            let indexes = 0..frame.records;
            indexes.map(|index| (frame.origin, frame.sequence, index))
        });
        let wanted =
            all.filter(|(.., index)| self.partition.is_none_or(|p| index % PARTITIONS == p));
        let wanted: Vec<_> = wanted.collect();
        assert!(
            wanted.iter().all(|one| unique.contains(one)),
            "lost: {wanted:?} {:?}",
            self.given
        );
        assert_eq!(wanted.len(), unique.len());
        for region in 0..REGIONS {
            let of_it = self.given.iter().filter(|(o, ..)| *o == origin(region));
            assert!(of_it.is_sorted(), "out of order: {:?}", self.given);
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        region: usize,
        records: u32,
    },
    TakeOver {
        region: usize,
        of: usize,
        through: usize,
    },
    Hop {
        region: usize,
    },
    Take {
        most: u32,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let region = || 0..REGIONS;
    let step = prop_oneof![
        2 => (region(), 1u32..6).prop_map(|(region, records)| Step::Write { region, records }),
        3 => (region(), region(), region())
            .prop_map(|(region, of, through)| Step::TakeOver { region, of, through }),
        2 => region().prop_map(|region| Step::Hop { region }),
        3 => (1u32..5).prop_map(|most| Step::Take { most }),
    ];
    prop::collection::vec(step, 0..80)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn who_hops_between_regions_is_given_everything_once(
        steps in steps(),
        partition in prop::option::of(0..PARTITIONS),
        last in 0..REGIONS,
    ) {
        let mut world = World::default();
        let mut subscriber = Subscriber::new(partition);
        for step in steps {
            match step {
                Step::Write { region, records } => world.write(region, records),
                Step::TakeOver { region, of, through } => {
                    world.take_over(region, of, through);
                }
                Step::Hop { region } => subscriber.hop(&world, region),
                Step::Take { most } => subscriber.take(&world, most),
            }
        }
        world.exchange_all();
        subscriber.hop(&world, last);
        while subscriber.position < world.logs[last].len() {
            subscriber.take(&world, 3);
        }
        subscriber.check(&world);
    }
}
