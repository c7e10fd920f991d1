//! Mount options as they stand in a PersistentVolume or a StorageClass. How a share is mounted its Share says, for all who use
//! it: readers share a mount. So what is wished for must be what the Share says, and everything else is refused by name.

use crate::share::{Policy, Share, why_not};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wishes(Vec<Wish>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Wish {
    Hard,
    Soft,
    Number(Field, u32),
    NoExec,
    ReadOnly,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    Timeo,
    Retrans,
    Nconnect,
    Rsize,
    Wsize,
    Actimeo,
}

impl Field {
    const ALL: [(Self, &str); 6] = [
        (Self::Timeo, "timeo"),
        (Self::Retrans, "retrans"),
        (Self::Nconnect, "nconnect"),
        (Self::Rsize, "rsize"),
        (Self::Wsize, "wsize"),
        (Self::Actimeo, "actimeo"),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(field, _)| *field == self).map_or("", |(_, name)| name)
    }

    fn of(self, share: &Share) -> Option<u32> {
        let options = &share.options;
        match self {
            // What the kernel is told if the Share says nothing.
            Self::Timeo => options.timeo.or(Some(600)),
            Self::Retrans => options.retrans.or(Some(2)),
            Self::Nconnect => options.nconnect,
            Self::Rsize => options.rsize,
            Self::Wsize => options.wsize,
            Self::Actimeo => options.actimeo,
        }
    }
}

/// What every volume is anyway, or what is nothing to the client.
const GRANTED: [&str; 19] = [
    "rw",
    "nosuid",
    "nodev",
    "vers=4",
    "vers=4.1",
    "nfsvers=4",
    "nfsvers=4.1",
    "minorversion=1",
    "proto=tcp",
    "tcp",
    "sec=sys",
    "nosharecache",
    "noatime",
    "nodiratime",
    "relatime",
    "async",
    "_netdev",
    "nofail",
    "defaults",
];

impl Wishes {
    /// As a list whose entries may be lists themselves: `vers=4.1,hard`.
    pub fn read<'a>(options: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let words = options.into_iter().flat_map(|option| option.split(',')).map(str::trim);
        let words = words.filter(|word| !word.is_empty() && !GRANTED.contains(word));
        words.map(wish).collect::<Result<_, _>>().map(Self)
    }

    /// That nothing is to be written, whatever the Share allows.
    pub fn read_only(&self) -> bool {
        self.0.contains(&Wish::ReadOnly)
    }

    /// Whether the share is mounted so.
    pub fn suit(&self, share: &Share) -> Result<(), String> {
        let name = &share.name;
        for wish in &self.0 {
            match *wish {
                Wish::Hard if share.policy == Policy::Soft => {
                    return Err(format!("mount option \"hard\": the policy of Share {name} is soft; leave it out"));
                }
                Wish::Soft if share.policy != Policy::Soft => {
                    let policy = share.policy;
                    return Err(format!(
                        "mount option \"soft\": the policy of Share {name} is {policy}; leave it out, or use a Share that says policy: soft"
                    ));
                }
                Wish::NoExec if !share.options.no_exec => {
                    return Err(format!(
                        "mount option \"noexec\": Share {name} says nothing of it; say spec.mountOptions.noexec: true there"
                    ));
                }
                Wish::Number(field, number) if field.of(share) != Some(number) => {
                    let (field, said) = (field.name(), field.of(share));
                    let said = said.map_or("nothing of it".to_owned(), |said| said.to_string());
                    return Err(format!(
                        "mount option \"{field}={number}\": Share {name} says {said}, for all who use it; leave it out, or say spec.mountOptions.{field}: {number} there"
                    ));
                }
                Wish::Hard | Wish::Soft | Wish::NoExec | Wish::ReadOnly | Wish::Number(..) => {}
            }
        }
        Ok(())
    }
}

fn wish(word: &str) -> Result<Wish, String> {
    match word {
        "hard" => return Ok(Wish::Hard),
        "soft" => return Ok(Wish::Soft),
        "noexec" => return Ok(Wish::NoExec),
        "ro" => return Ok(Wish::ReadOnly),
        _ => {}
    }
    let (key, value) = word.split_once('=').map_or((word, None), |(key, value)| (key, Some(value)));
    let field = Field::ALL.iter().find(|(_, name)| *name == key);
    if let (Some((field, _)), Some(value)) = (field, value) {
        let number = value.parse().map_err(|_| format!("mount option {word:?} is no number"))?;
        return Ok(Wish::Number(*field, number));
    }
    Err(match why_not(key) {
        Some(reason) => format!("mount option {word:?} is not for a volume to choose: {reason}"),
        None => format!(
            "mount option {word:?} is not known; there are: hard, soft, vers=4.1, ro, noexec, timeo, retrans, nconnect, rsize, wsize, actimeo"
        ),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::yaml::{Object, parse};

    fn share(more: &str) -> Share {
        let text = format!(
            "apiVersion: moorline.io/v1alpha1\nkind: Share\nmetadata: {{name: data}}\nspec: {{gateway: gw, export: /d, access: ReadOnly, namespaces: ['*']{more}}}\n"
        );
        match parse("a", &text).unwrap().remove(0).object {
            Object::Share(share) => share,
            Object::Gateway(_) => unreachable!("it is a Share"),
        }
    }

    #[test]
    fn what_the_share_says_may_be_said_again_and_nothing_else() {
        let suits = |words: &[&str], more: &str| Wishes::read(words.iter().copied())?.suit(&share(more));
        assert_eq!(suits(&["vers=4.1", "hard"], ""), Ok(()));
        assert_eq!(suits(&["nfsvers=4.1,hard,timeo=600,retrans=2", "noatime"], ""), Ok(()));
        assert_eq!(suits(&["nconnect=4", "noexec"], ", mountOptions: {nconnect: 4, noexec: true}"), Ok(()));
        assert_eq!(suits(&["hard"], ", policy: bounded, after: 5m"), Ok(()));
        let refused = |words: &[&str], more: &str| suits(words, more).unwrap_err();
        assert!(refused(&["soft"], "").contains("policy of Share data is hard; leave it out"));
        assert!(refused(&["nconnect=8"], "").contains("says nothing of it, for all who use it"));
        assert!(refused(&["timeo=50"], "").contains("Share data says 600"));
        assert!(refused(&["vers=3"], "").contains("recovery rests on NFSv4.1"));
        assert!(refused(&["nolock"], "").contains("protect nobody on another node"));
        assert!(refused(&["addr=10.0.0.1"], "").contains("follows from the Gateway"));
        assert!(refused(&["fsc"], "").contains("is not known; there are"));
        assert!(Wishes::read(["ro"]).unwrap().read_only());
    }

    proptest! {
        #[test]
        fn anything_is_taken_or_refused(words in prop::collection::vec(".{0,20}", 0..4)) {
            let _ = Wishes::read(words.iter().map(String::as_str)).map(|wishes| wishes.suit(&share("")));
        }
    }
}
