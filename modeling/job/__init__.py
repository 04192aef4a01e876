"""The processes of one training job: how they meet, agree and end together.

::

    place        a process's number in its job, and the address where the processes meet
    coordinator  what process 0 does for the others: it passes messages on and notices who is lost
    group        ProcessGroup: the whole job as one of its processes sees it
    termination  SIGTERM, SIGUSR1 and Ctrl-C become a request to stop, and an exit code
"""
