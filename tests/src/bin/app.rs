//! The application of the lab's pods. It knows nothing of moorline: it reads, writes, and writes down what it saw.
//!
//! Each argument is JOB:PATH with JOB one of read, write, hold, stay, dirty, trespass, search, keep, map, alter, or
//! JOB:PATH=TAG with JOB one of leave, put; each job runs in a thread of its own, so that one that blocks does not silence
//! the others.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::{self, ExitCode};
use std::thread;
use std::time::Duration;

use moorline_sys::mapping::Mapping;
use moorline_tests::data;
use moorline_tests::event::{Event, Op};
use moorline_tests::wait::monotonic;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::sys::signal::{SigSet, Signal};

/// Between two rounds of a job: a pace, nothing is waited for.
const PACE: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    // Blocked before the first thread starts, or a job's thread might take the signal; pid 1 has no default action.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    if let Err(error) = signals.thread_block() {
        eprintln!("block SIGTERM: {error}");
        return ExitCode::FAILURE;
    }
    for argument in std::env::args().skip(1) {
        let Some((job, path)) = argument.split_once(':') else {
            eprintln!("{argument}: expected JOB:PATH");
            return ExitCode::FAILURE;
        };
        let path = path.to_owned();
        let spawned = match job {
            "read" => thread::Builder::new().name("read".into()).spawn(move || rounds(|_| read(&path))),
            "write" => thread::Builder::new().name("write".into()).spawn(move || rounds(|number| write(&path, number))),
            "hold" => thread::Builder::new().name("hold".into()).spawn(move || hold(&path)),
            "stay" => thread::Builder::new().name("stay".into()).spawn(move || stay(&path)),
            "dirty" => thread::Builder::new().name("dirty".into()).spawn(move || dirty(&path)),
            "trespass" => thread::Builder::new().name("trespass".into()).spawn(move || rounds(|_| trespass(&path))),
            "search" => {
                thread::Builder::new().name("search".into()).spawn(move || rounds(|number| search(&path, number)))
            }
            "keep" => thread::Builder::new().name("keep".into()).spawn(move || keep(&path)),
            "map" => thread::Builder::new().name("map".into()).spawn(move || map(&path)),
            "alter" => thread::Builder::new().name("alter".into()).spawn(move || alter(&path)),
            "leave" => thread::Builder::new().name("leave".into()).spawn(move || leave(&path)),
            "put" => thread::Builder::new().name("put".into()).spawn(move || put(&path)),
            other => Err(io::Error::other(format!("{other}: no such job"))),
        };
        if let Err(error) = spawned {
            eprintln!("start {argument}: {error}");
            return ExitCode::FAILURE;
        }
    }
    // A thread of its own for the end: jobs may be blocked in the kernel.
    match signals.wait() {
        Ok(_) => process::exit(0),
        Err(error) => {
            eprintln!("wait for SIGTERM: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The next record's number goes up only when one was acknowledged.
fn rounds(mut job: impl FnMut(u64) -> Event) {
    let mut number = 1;
    loop {
        let began = monotonic();
        let mut event = job(number);
        event.at = monotonic();
        event.took = event.at - began;
        number += u64::from(event.succeeded());
        say(&event);
        thread::sleep(PACE);
    }
}

fn say(event: &Event) {
    if let Ok(line) = serde_json::to_string(event) {
        // One write for one line: several threads share the output.
        let _ = io::stdout().lock().write_all(format!("{line}\n").as_bytes());
    }
}

fn read(path: &str) -> Event {
    let mut bytes = Vec::new();
    let done = File::open(path).and_then(|mut file| {
        file.read_to_end(&mut bytes)?;
        // Or the next round would be served by the page cache, whatever became of the server.
        Ok(posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
    });
    verified(Op::Read, path, done, &bytes)
}

fn verified(op: Op, path: &str, done: io::Result<()>, bytes: &[u8]) -> Event {
    let mut event = event(op, path, done);
    if event.problem.is_none() {
        event.bytes = bytes.len() as u64;
        match data::verify(bytes) {
            Ok(tag) => event.tag = tag,
            Err(problem) => event.problem = Some(problem),
        }
    }
    event
}

fn write(path: &str, number: u64) -> Event {
    let record = data::record(number);
    let done = OpenOptions::new().append(true).create(true).mode(0o644).open(path).and_then(|mut file| {
        file.write_all(record.as_bytes())?;
        file.sync_all()
    });
    let mut event = event(Op::Write, path, done);
    event.bytes = record.len() as u64;
    event.tag = number.to_string();
    if event.errno == 0 {
        event.problem = lost(path, number).map(|lost| format!("record {lost} was acknowledged and is gone"));
    }
    event
}

/// One descriptor for all records, as a checkpoint writer or a database has it: with its server away it waits in fsync,
/// where no signal reaches it. That it goes there is said first, or nobody could tell it from one that waits in open.
fn hold(path: &str) {
    let file = loop {
        let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path);
        match opened.and_then(|file| file.lock().map(|()| file)) {
            Ok(file) => break file,
            Err(error) => say(&Event { at: monotonic(), ..event(Op::Write, path, Err(error)) }),
        }
        thread::sleep(PACE);
    };
    // At an offset of its own and not at the end: a record whose fsync failed is written again in its place.
    let offset = Cell::new(0);
    rounds(|number| {
        let record = data::record(number);
        let done = file.write_all_at(record.as_bytes(), offset.get()).and_then(|()| {
            say(&Event { at: monotonic(), tag: number.to_string(), ..event(Op::Sync, path, Ok(())) });
            file.sync_all()
        });
        let mut event = event(Op::Write, path, done);
        event.bytes = record.len() as u64;
        event.tag = number.to_string();
        offset.set(offset.get() + if event.succeeded() { event.bytes } else { 0 });
        event
    });
}

/// A working directory is as open as a descriptor: what becomes of the mount it is on becomes of it.
fn stay(path: &str) {
    while let Err(error) = std::env::set_current_dir(path) {
        say(&Event { at: monotonic(), ..event(Op::List, path, Err(error)) });
        thread::sleep(PACE);
    }
    rounds(|_| {
        // Made anew, or it would be listed from the cache.
        let listed = fs::File::open(".").and_then(|directory| {
            nix::sys::stat::fstat(&directory)?;
            fs::read_dir(".")?.try_for_each(|entry| entry.map(drop))
        });
        event(Op::List, path, listed)
    });
}

/// What is written and not synced stays on the node until the descriptor is closed, here by the process's end.
fn dirty(path: &str) {
    let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path);
    let done = opened.and_then(|file| {
        file.write_all_at(data::record(1).as_bytes(), 0)?;
        say(&Event { at: monotonic(), tag: "1".into(), ..event(Op::Dirty, path, Ok(())) });
        loop {
            thread::park();
        }
    });
    if let Err::<(), _>(error) = done {
        say(&Event { at: monotonic(), ..event(Op::Dirty, path, Err(error)) });
    }
}

/// Acknowledged means there: the first record up to `number` that is not. A log that cannot be read proves nothing.
fn lost(path: &str, number: u64) -> Option<u64> {
    let there: BTreeSet<_> = data::records(&fs::read(path).ok()?).into_iter().collect();
    (1..=number).find(|wanted| !there.contains(wanted))
}

fn trespass(path: &str) -> Event {
    event(Op::Trespass, path, fs::write(path, b"must not be"))
}

/// A name that the kernel has to ask the server for: it keeps the directory locked until there is an answer.
fn search(path: &str, number: u64) -> Event {
    let done = match fs::symlink_metadata(format!("{path}-{number}")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map(drop),
    };
    event(Op::Search, path, done)
}

fn keep(path: &str) {
    let (file, mut bytes) = once(Op::Keep, path, || {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok((file, vec![0; usize::try_from(length).map_err(io::Error::other)?]))
    });
    rounds(|_| {
        let forgotten = posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(io::Error::from);
        verified(Op::Keep, path, forgotten.and_then(|()| file.read_exact_at(&mut bytes, 0)), &bytes)
    });
}

fn map(path: &str) {
    let (mut mapping, mut bytes) = once(Op::Map, path, || {
        let file = File::open(path)?;
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        Ok((Mapping::new(file, length, false)?, vec![0; length]))
    });
    rounds(|_| {
        let done = fresh(&mapping).and_then(|()| mapping.read(0, &mut bytes));
        verified(Op::Map, path, done, &bytes)
    });
}

/// A page that is written again and again. Acknowledged by msync means there: it is read from the server again.
fn alter(path: &str) {
    const PAGE: usize = 4096;
    let mut mapping = once(Op::Map, path, || {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o644).open(path)?;
        file.set_len(PAGE as u64)?;
        Mapping::new(file, PAGE, true)
    });
    rounds(|number| {
        let record = data::record(number);
        let mut there = vec![0; record.len()];
        let done = mapping.write(0, record.as_bytes()).and_then(|()| mapping.sync());
        let done = done.and_then(|()| fresh(&mapping)).and_then(|()| mapping.read(0, &mut there));
        let mut event = event(Op::Map, path, done);
        event.bytes = record.len() as u64;
        event.tag = number.to_string();
        if event.errno == 0 && there != record.as_bytes() {
            event.problem = Some(format!("record {number} was acknowledged and is gone"));
        }
        event
    });
}

/// Neither this mapping nor the kernel keeps what is in it: the next touch asks the server.
fn fresh(mapping: &Mapping) -> io::Result<()> {
    mapping.forget()?;
    Ok(posix_fadvise(mapping.file(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?)
}

/// Tries until it is done, and says how it fails.
fn once<T>(op: Op, path: &str, prepare: impl Fn() -> io::Result<T>) -> T {
    loop {
        match prepare() {
            Ok(done) => return done,
            Err(error) => say(&Event { at: monotonic(), ..event(op, path, Err(error)) }),
        }
        thread::sleep(PACE);
    }
}

fn leave(argument: &str) {
    let (path, tag) = argument.split_once('=').unwrap_or((argument, "left"));
    let file = once(Op::Dirty, path, || {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?;
        file.write_all_at(&data::file(tag, 10_000), 0)?;
        Ok(file)
    });
    say(&Event { at: monotonic(), tag: tag.into(), ..event(Op::Dirty, path, Ok(())) });
    loop {
        thread::park();
        let _ = &file;
    }
}

fn put(argument: &str) {
    let (path, tag) = argument.split_once('=').unwrap_or((argument, "put"));
    let began = monotonic();
    once(Op::Write, path, || {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(path)?;
        file.write_all_at(&data::file(tag, 10_000), 0)?;
        file.sync_all()
    });
    let at = monotonic();
    say(&Event { at, took: at - began, tag: tag.into(), ..event(Op::Write, path, Ok(())) });
}

fn event(op: Op, path: &str, done: io::Result<()>) -> Event {
    let errno = done.as_ref().err().map_or(0, |error| error.raw_os_error().unwrap_or(-1));
    let problem = done.err().map(|error| error.to_string());
    Event { at: 0.0, took: 0.0, op, path: path.into(), errno, bytes: 0, tag: String::new(), problem }
}
