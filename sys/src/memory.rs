//! How this process takes memory from the kernel, and gives it back.

/// Keeps what is free rather with the kernel than with this process. By default glibc gives each thread a heap of its own, of
/// which each keeps what it once needed; an agent whose threads come and go pays for that and gains nothing.
pub fn keep_little() {
    /// A heap's free end goes back to the kernel from this size on.
    const FREE: libc::c_int = 128 * 1024;
    // SAFETY: mallopt changes parameters of the allocator, under its own lock.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        // Setting it also keeps glibc from raising it to twice the largest piece that was ever freed.
        libc::mallopt(libc::M_TRIM_THRESHOLD, FREE);
    }
}
