import CLibrorum

/// An entry of a directory.
public struct ListedEntry: Sendable, Hashable {
    /// Relative to the directory.
    public let path: RemotePath
    public let entry: Entry
}

extension Client {
    /// The entries of a directory; with `recursive` depth first, a directory before what is in it.
    public func list(
        _ path: RemotePath = "", recursive: Bool = false, volume: String = ""
    ) throws -> Listing {
        var listing: lb_listing = 0
        try path.withCString { path in
            try RemotePath(volume).withCString { volume in
                let flags = recursive ? UInt32(LB_LIST_RECURSIVE) : 0
                try check(lb_list(handle, volume, path, flags, &listing))
            }
        }
        return Listing(handle: listing)
    }
}

/// The entries of a directory, asked for page by page.
public final class Listing: Sendable {
    private let handle: lb_listing

    init(handle: lb_listing) {
        self.handle = handle
    }

    deinit {
        _ = lb_list_close(handle)
    }

    /// The next entry; `nil` after the last. What it throws in a recursive listing may be about one
    /// directory that cannot be read: the next call goes on.
    public func next() throws -> ListedEntry? {
        var entry = lb_entry()
        var isEnd = false
        let path = try withGrowingText { text, size, length in
            let code = lb_list_next(handle, &entry, text, size, length)
            isEnd = code == LB_END
            return isEnd ? LB_OK : code
        }
        return isEnd ? nil : ListedEntry(path: path, entry: Entry(entry))
    }
}

/// In `for try await`, each entry is asked for on a thread that may wait.
extension Listing: AsyncSequence {
    public struct AsyncIterator: AsyncIteratorProtocol {
        let listing: Listing

        public mutating func next() async throws -> ListedEntry? {
            let listing = listing
            return try await waiting { try listing.next() }
        }
    }

    public func makeAsyncIterator() -> AsyncIterator {
        AsyncIterator(listing: self)
    }
}
