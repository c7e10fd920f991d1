//! A dataset file that carries its own checksum and the tag of who made it, so that a reader can tell whether what it
//! got is whole, and whose it is.

use sha2::{Digest, Sha256};

const MAGIC: &str = "moorline-lab";

/// A file of `length` payload bytes, tagged.
pub fn file(tag: &str, length: usize) -> Vec<u8> {
    let payload: Vec<u8> = tag.bytes().chain(*b"/").cycle().take(length).collect();
    let mut bytes = format!("{MAGIC} {tag} {length} {}\n", digest(&payload)).into_bytes();
    bytes.extend(payload);
    bytes
}

/// The tag, if the file is whole.
pub fn verify(bytes: &[u8]) -> Result<String, String> {
    let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("no header line")?;
    let (header, payload) = (&bytes[..end], &bytes[end + 1..]);
    let header = std::str::from_utf8(header).map_err(|_| "header is not text")?;
    match header.split(' ').collect::<Vec<_>>()[..] {
        [MAGIC, tag, length, sum] if length == payload.len().to_string() && sum == digest(payload) => Ok(tag.into()),
        [MAGIC, tag, length, _] => Err(format!("{tag}: {} bytes instead of {length}, or altered", payload.len())),
        _ => Err("not a file of the lab".into()),
    }
}

/// Record `number` of a log; a reader recognises a torn one.
pub fn record(number: u64) -> String {
    let text = format!("record {number}");
    format!("{text} {}\n", &digest(text.as_bytes())[..16])
}

/// The numbers of all whole records.
pub fn records(log: &[u8]) -> Vec<u64> {
    String::from_utf8_lossy(log)
        .split_inclusive('\n')
        .filter_map(|line| {
            let number = line.split(' ').nth(1)?.parse().ok()?;
            (line == record(number)).then_some(number)
        })
        .collect()
}

fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_file_gives_its_tag() {
        assert_eq!(verify(&file("a", 1000)), Ok("a".into()));
        assert_eq!(verify(&file("a", 0)), Ok("a".into()));
    }

    #[test]
    fn an_altered_or_short_file_is_told() {
        let mut bytes = file("a", 1000);
        bytes[500] ^= 1;
        assert!(verify(&bytes).is_err());
        assert!(verify(&file("a", 1000)[..900]).is_err());
        assert!(verify(b"").is_err());
    }

    #[test]
    fn torn_records_do_not_count() {
        let log = format!("{}{}{}", record(1), record(2), &record(3)[..10]);
        assert_eq!(records(log.as_bytes()), [1, 2]);
    }
}
