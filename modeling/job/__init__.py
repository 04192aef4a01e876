"""How the processes of a training job meet, agree and end together.

::

    place        a process's number in its job, and the address where the processes meet
    messages     what the processes and the coordinator say to each other
    connection   carries messages between two sides that have proved that they know the job's token
    coordinator  passes messages between the processes and detects lost ones; runs in process 0
    group        ProcessGroup: the whole job, as one of its processes sees it
    termination  turns SIGTERM, SIGUSR1, SIGHUP and Ctrl-C into a request to stop and an exit code
"""
