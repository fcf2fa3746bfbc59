"""What tests of several rooms share: heads, sweeps, stores, hosts, servers. No tests are here."""
