"""What the doctor looks at. Nothing here needs more than Python's own library until a check runs, in a process of its
own: a package that is missing or broken, or ends the process, is a finding."""
