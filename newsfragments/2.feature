First release: three nodes replicate registrations through a Raft log and proxy calls over UDP and TCP; `siphactl` shows and changes bindings and accounts.
