use super::sweep::{Sweep, sweep};
use super::*;

#[test]
fn a_thousand_seeds_keep_the_invariants() {
    let done = sweep(&Sweep { seeds: 0..1000, threads: 2, ..Sweep::default() }, |failure| println!("{failure}"));
    assert!(done.failures.is_empty(), "{}", done.failures.join("\n"));
    assert_eq!((done.runs, done.next), (1000, 1000));
}

#[test]
fn a_seed_is_the_same_each_time() {
    for seed in 0..20 {
        let (first, second) = (run(seed, true), run(seed, true));
        assert!(first.story.len() > 50, "seed {seed} tells nothing");
        for (line, (one, other)) in first.story.iter().zip(&second.story).enumerate() {
            assert_eq!(one, other, "seed {seed}, line {line}");
        }
        assert_eq!(first, second);
        assert_eq!(run(seed, false).broken, first.broken, "telling changes nothing");
    }
}

#[test]
fn an_interrupted_sweep_goes_on_and_one_that_is_done_begins_anew() {
    let file = std::env::temp_dir().join(format!("moorline-seeds-{}", std::process::id()));
    let wanted = Sweep { seeds: 0..12, resume: Some(file.clone()), ..Sweep::default() };
    std::fs::write(&file, "9").unwrap();
    let runs = [(); 2].map(|()| sweep(&wanted, |_| ()).runs);
    std::fs::remove_file(&file).unwrap();
    assert_eq!(runs, [3, 12]);
}
