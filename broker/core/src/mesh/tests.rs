use super::*;
use crate::id::Epoch;
use crate::members::founded;

fn origin(broker: u64) -> Origin {
    Origin {
        broker: BrokerId::new(broker),
        epoch: Epoch::new(1),
    }
}

fn region(name: &str) -> RegionName {
    RegionName::parse(name).unwrap()
}

fn report(broker: u64, applied: &[(u64, u64)], promise: u64) -> Report {
    let entry = |&(broker, sequence)| (origin(broker), Sequence::new(sequence));
    Report {
        broker: BrokerId::new(broker),
        applied: applied.iter().map(entry).collect(),
        promise: HybridTimestamp::new(promise),
    }
}

#[test]
fn nothing_is_stable_before_all_that_are_named_were_met() {
    let mut mesh = Mesh::new(BrokerId::new(1), region("a"));
    mesh.advance(report(1, &[(1, 3)], 30), &founded(&[1]));
    mesh.link(BrokerId::new(2), region("b"), VersionVector::EMPTY);
    mesh.hear(report(2, &[(1, 3)], 20));
    assert_eq!(mesh.stable(), VersionVector::EMPTY);
    assert_eq!(mesh.watermark(), HybridTimestamp::ZERO);
    // The third is met through a frame that the second has relayed.
    mesh.advance(report(1, &[(1, 3), (3, 1)], 40), &founded(&[1]));
    let promised = |mesh: &Mesh| mesh.report(BrokerId::new(1)).unwrap().promise;
    assert_eq!(promised(&mesh), HybridTimestamp::ZERO);
    mesh.hear(report(3, &[(1, 2), (3, 1)], 25));
    assert_eq!(mesh.watermark(), HybridTimestamp::ZERO);
    mesh.know_all();
    assert!(!mesh.has_to_tell(), "the others are no members yet");
    mesh.advance(report(1, &[(1, 3), (3, 1)], 40), &founded(&[1, 2, 3]));
    assert!(mesh.has_to_tell());
    assert_eq!(promised(&mesh), HybridTimestamp::ZERO);
    mesh.advance(report(1, &[(1, 4), (3, 1)], 40), &founded(&[1, 2, 3]));
    assert_eq!(promised(&mesh), HybridTimestamp::new(40));
    assert_eq!(mesh.watermark(), HybridTimestamp::new(20));
    assert_eq!(mesh.stable().get(origin(1)), Sequence::new(2));
}

/// 2 has written 6, which follows 3's 10, shipped and reported it, and was restored without it. At
/// the broker, 6 waits for 10 while it answers.
#[test]
fn a_report_that_waits_when_its_broker_asks_what_it_may_have_forgotten_never_counts() {
    let all = founded(&[1, 2, 3]);
    let mesh = |broker, name, applied: &[(u64, u64)]| {
        let mut mesh = Mesh::new(BrokerId::new(broker), region(name));
        mesh.advance(report(broker, applied, 10), &all);
        mesh.resume();
        mesh
    };
    let mut one = mesh(1, "a", &[(1, 1), (2, 5), (3, 9)]);
    let earlier = report(2, &[(1, 1), (2, 6), (3, 10)], 20);
    one.hear(earlier);
    let mut two = mesh(2, "b", &[(1, 1), (2, 5), (3, 9)]);
    let mut three = mesh(3, "c", &[(1, 1), (2, 5), (3, 10)]);
    two.recall(Origin {
        epoch: Epoch::new(2),
        ..origin(2)
    });
    let tell = |from: &Mesh, to: &mut Mesh| {
        let recalls = from.news(None, true).recalls;
        recalls.into_iter().for_each(|recall| {
            to.hear_recall(recall);
        });
    };
    for _ in 0..2 {
        tell(&two, &mut one);
        tell(&one, &mut three);
        tell(&three, &mut two);
    }
    two.advance(report(2, &[(1, 1), (2, 5), (3, 10)], 15), &all);
    assert!(two.is_recalled());
    let follows = two.applied().clone();
    one.advance(report(1, &[(1, 1), (2, 6), (3, 10)], 20), &all);
    one.hear(report(3, &[(1, 1), (2, 6), (3, 10)], 20));
    assert!(follows.covers(&one.stable()), "{:?}", one.stable());
}

#[test]
fn who_has_lost_its_members_does_not_know_whom_to_wait_for() {
    let mut mesh = Mesh::new(BrokerId::new(1), region("a"));
    mesh.advance(report(1, &[], 0), &Members::default());
    mesh.recall(origin(1));
    assert!(!mesh.is_recalled());
    mesh.end_recall();
    assert!(mesh.is_recalled());
}

#[test]
fn a_restored_broker_holds_what_it_says_and_not_what_it_said() {
    let mut mesh = Mesh::new(BrokerId::new(1), region("a"));
    mesh.advance(report(1, &[(1, 3), (2, 5)], 30), &founded(&[1, 2]));
    mesh.link(BrokerId::new(2), region("b"), VersionVector::EMPTY);
    mesh.hear(report(2, &[(1, 3), (2, 9)], 40));
    mesh.hear(report(2, &[(1, 100), (2, 5)], 300));
    assert_eq!(mesh.holding(origin(1), Sequence::new(100)).len(), 1);
    mesh.advance(report(1, &[(1, 100), (2, 5)], 300), &founded(&[1, 2]));
    assert_eq!(mesh.holding(origin(1), Sequence::new(100)).len(), 2);
}

#[test]
fn reports_of_brokers_that_are_made_up_are_bounded() {
    let mut mesh = Mesh::new(BrokerId::new(1), region("a"));
    mesh.advance(report(1, &[(1, 3)], 30), &founded(&[1, 2]));
    for broker in 1000..5000 {
        mesh.hear(report(broker, &[], 1));
    }
    assert_eq!(mesh.news(None, false).reports.len(), 1 + MOST_UNKNOWN);
    mesh.hear(report(2, &[], 1));
    assert!(
        mesh.report(BrokerId::new(2)).is_some(),
        "of a member it is kept"
    );
}

#[test]
fn what_a_broker_has_reported_before_its_first_frame_came_counts_then() {
    let mut mesh = Mesh::new(BrokerId::new(1), region("a"));
    mesh.resume();
    mesh.hear(report(2, &[(1, 3), (2, 1)], 20));
    mesh.advance(report(1, &[(1, 3), (2, 1)], 20), &founded(&[1]));
    assert_eq!(mesh.stable(), *mesh.applied());
}

#[test]
fn the_regions_that_hold_a_frame_are_counted_once_each() {
    let mut mesh = Mesh::new(BrokerId::new(1), region("a"));
    for (broker, name) in [(2, "a"), (3, "b"), (4, "c")] {
        mesh.link(BrokerId::new(broker), region(name), VersionVector::EMPTY);
    }
    mesh.advance(report(1, &[(1, 9)], 1), &founded(&[1]));
    mesh.hear(report(2, &[(1, 9)], 1));
    mesh.hear(report(3, &[(1, 5)], 1));
    mesh.hear(report(4, &[(1, 4)], 1));
    let held = |sequence| mesh.holding(origin(1), Sequence::new(sequence)).len();
    assert_eq!([held(4), held(5), held(9), held(10)], [3, 2, 1, 0]);
    assert_eq!(mesh.elsewhere(origin(1)), Sequence::new(5));
}
