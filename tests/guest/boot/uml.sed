# What Debian's kernel does on x86, and user-mode Linux of 6.12 does not.

# Setting several page table entries at once: each is of the next page, whatever is left to be done. With three
# and more, pages were left out. A child of a process with rings of io_uring of four pages or more was given pages
# of others in their place, and freed them when it ended.
s/(nr << PFN_PTE_SHIFT)/(1UL << PFN_PTE_SHIFT)/

# A server that is killed while it answers reads leaves them to the next one. Here the driver fails them
# with EIO: without fast access to the pages of a process, which user-mode Linux has not, nothing can be
# copied from one that has a fatal signal. A read of which nothing was copied is to be read again, like one
# of which less was copied than read.
s/if (unlikely(!unmapped_bytes))/if (0)/
