//! The user of this machine that a loopback connection comes from, as the kernel lists it in `/proc/net/tcp`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};

/// The files in which the kernel lists connections.
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];

/// Returns the user of this process as the kernel lists it for a connection of our own. `None` means that it does not.
pub(super) fn own_user() -> Option<u32> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).ok()?;
    let server = listener.local_addr().ok()?;
    let client = TcpStream::connect(server).ok()?;
    user_of(client.local_addr().ok()?, server)
}

/// Returns the user id of the process at the other end of a connection. `client` is its address and `server` ours.
pub(super) fn user_of(client: SocketAddr, server: SocketAddr) -> Option<u32> {
    let tables = TABLES.iter().filter_map(|path| std::fs::read_to_string(path).ok());
    tables.into_iter().find_map(|table| user_in(&table, client, server))
}

/// Finds the user in a table. The columns are: number, local address, remote address, state, queues, timer,
/// retransmits, user, …
fn user_in(table: &str, client: SocketAddr, server: SocketAddr) -> Option<u32> {
    let (client, server) = (written(client), written(server));
    table.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let ours = words.next()? == client && words.next()? == server;
        ours.then(|| words.nth(4)?.parse().ok())?
    })
}

/// Formats an address as the kernel does: 32-bit words in the machine's byte order, then the port.
fn written(address: SocketAddr) -> String {
    let words = |octets: &[u8]| -> String {
        let words = octets.chunks_exact(4).map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
        words.map(|word| format!("{word:08X}")).collect()
    };
    let ip = match address.ip() {
        IpAddr::V4(ip) => words(&ip.octets()),
        IpAddr::V6(ip) => words(&ip.octets()),
    };
    format!("{ip}:{:04X}", address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_of_a_connection_is_found_among_others() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1B9E 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1000        0 1 1 0 100 0 0 10 0\n\
            1: 0100007F:1B9E 0100007F:C001 01 00000000:00000000 00:00000000 00000000  1000        0 2 1 0 20 4 30 10 -1\n\
            2: 0100007F:C001 0100007F:1B9E 01 00000000:00000000 00:00000000 00000000 65534        0 3 1 0 20 4 30 10 -1\n";
        let (client, server) = ("127.0.0.1:49153".parse().unwrap(), "127.0.0.1:7070".parse().unwrap());
        if cfg!(target_endian = "little") {
            assert_eq!(user_in(table, client, server), Some(65534));
            assert_eq!(user_in(table, "127.0.0.1:49154".parse().unwrap(), server), None);
        }
    }

    #[test]
    fn this_process_finds_itself() {
        use std::os::unix::fs::MetadataExt;

        // A file that this process creates belongs to its user.
        let file = tempfile::NamedTempFile::new().unwrap();
        let uid = file.as_file().metadata().unwrap().uid();
        if std::path::Path::new(TABLES[0]).exists() {
            assert_eq!(own_user(), Some(uid));
        }
    }
}
