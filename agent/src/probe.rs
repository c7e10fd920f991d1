//! Is a server there? An RPC over a plain socket: no mount is touched, so nothing here can hang on one.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use moorline_sys::namespace;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::timeout;

use crate::paths::from_agent;
use crate::reconcile::Clock;

/// From the end of one question to the next.
pub(crate) const PAUSE: Duration = Duration::from_millis(500);
const NFS_PORT: u16 = 2049;

/// A server, asked through the network namespace that leads to it.
pub(crate) struct Question {
    pub namespace: PathBuf,
    pub server: IpAddr,
    /// How long it may take for one answer.
    pub patience: Duration,
}

impl Question {
    /// Asks once, and says how long the answer took. Any well-formed answer to our call is a sign of life.
    pub(crate) async fn ask(&self, clock: &Clock) -> io::Result<Duration> {
        timeout(self.patience, self.call_null(clock)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }

    async fn call_null(&self, clock: &Clock) -> io::Result<Duration> {
        let socket = namespace::tcp_socket(&from_agent(&self.namespace), self.server.is_ipv6())?;
        let mut stream = TcpSocket::from_std_stream(socket).connect(SocketAddr::new(self.server, NFS_PORT)).await?;
        let call = null_call();
        let asked = clock();
        stream.write_all(&call).await?;
        let mut reply = [0; 12];
        stream.read_exact(&mut reply).await?;
        if is_reply_to(&call, &reply) {
            Ok(clock().saturating_sub(asked))
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "no RPC reply"))
        }
    }
}

/// NFSv4's procedure 0, which does nothing, as one fragment of record marking (RFC 5531).
fn null_call() -> Vec<u8> {
    const XID: u32 = 0x6d6f_6f72;
    // call, RPC version 2, program, version, procedure, then empty credentials and verifier
    let body = [XID, 0, 2, 100_003, 4, 0, 0, 0, 0, 0];
    let last_fragment = 0x8000_0000 | (body.len() as u32 * 4);
    [last_fragment].iter().chain(&body).flat_map(|word| word.to_be_bytes()).collect()
}

fn is_reply_to(call: &[u8], reply: &[u8; 12]) -> bool {
    const REPLY: [u8; 4] = [0, 0, 0, 1];
    reply[4..8] == call[4..8] && reply[8..] == REPLY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reply_to_the_call_counts() {
        let call = null_call();
        assert_eq!(call.len(), 44);
        let mut reply = [0; 12];
        reply[4..8].copy_from_slice(&call[4..8]);
        assert!(!is_reply_to(&call, &reply), "a call is no reply");
        reply[11] = 1;
        assert!(is_reply_to(&call, &reply));
        reply[4] ^= 1;
        assert!(!is_reply_to(&call, &reply), "a reply to another call");
    }
}
