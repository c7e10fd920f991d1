use super::*;

fn event(op: Op, path: &str, at: f64, took: f64, errno: i32) -> String {
    let problem = (errno != 0).then(|| "an error".to_owned());
    let event = Event { at, took, op, path: path.into(), errno, bytes: 100, tag: String::new(), problem };
    serde_json::to_string(&event).unwrap() + "\n"
}

#[test]
fn what_was_seen_is_counted() {
    let log = [
        event(Op::Read, "/a", 1.0, 0.5, 0),
        event(Op::Map, "/a", 1.5, 0.0, 5),
        event(Op::Read, "/a", 5.0, 3.0, 5),
        event(Op::Read, "/a", 9.04, 0.1, 0),
        event(Op::Write, "/held", 90.0, 4.26, 512),
        event(Op::Map, "/mapped", 91.0, 0.0, 0),
        "{\"at\":".into(),
    ];
    let seen = Seen::of("passed", &log.concat(), &event(Op::Read, "/n", 1.0, 0.0, 5));
    assert_eq!((seen.bytes_verified, seen.acknowledged, seen.neighbour_errors), (200, 1, 1));
    assert_eq!(seen.errors, BTreeMap::from([("EIO".into(), 2), ("512".into(), 1)]));
    assert_eq!((seen.longest_call_s, seen.longest_gap_s), (4.3, 8.0));
}

#[test]
fn a_row_is_run_again_for_another_commit_or_when_it_failed() {
    let folder = std::env::temp_dir().join(format!("moorline-record-{}", std::process::id()));
    let (file, results) = (folder.join("record.jsonl"), folder.join("results"));
    for (row, verdict) in [("good", "passed"), ("bad", "failed with status 101")] {
        fs::create_dir_all(results.join(row)).unwrap();
        Seen::keep(&results.join(row), verdict).unwrap();
    }
    assert_eq!(take_in(&file, &results, "c1", None).unwrap(), 2);
    assert_eq!(take_in(&file, &results, "c1", Some("worse")).unwrap(), 2);
    assert_eq!(take_in(&file, &results, "c1", None).unwrap(), 2);
    assert_eq!(read(&file).unwrap().len(), 4, "a row is there once");
    let names = |commit, mutation| done(&file, commit, mutation).unwrap().into_iter().collect::<Vec<_>>();
    assert_eq!(names("c1", None), ["good"]);
    assert_eq!(names("c1", Some("worse")), ["bad"]);
    assert_eq!(names("c2", None), [""; 0]);
    for path in [results.join("good/seen.json"), results.join("bad/seen.json"), file] {
        fs::remove_file(path).unwrap();
    }
    for path in [results.join("good"), results.join("bad"), results, folder] {
        fs::remove_dir(path).unwrap();
    }
}
